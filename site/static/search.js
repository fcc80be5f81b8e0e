// What the search finds by an entry of the index is named by its section, as what it finds by a title is. And where the
// site is read from a folder, without a server, a page cannot ask for another one's text: no summaries then. In a summary
// stand the formulas that can be read as they are written.
if (typeof Search !== "undefined") {
  const perform = Search._performSearch;
  Search._performSearch = (...asked) => {
    const { docnames, alltitles } = Search._index;
    const sections = {};
    for (const [title, places] of Object.entries(alltitles)) {
      for (const [file, id] of places) sections[`${docnames[file]}#${id}`] = title;
    }
    const results = perform(...asked).map((found) => {
      const section = found[6] === SearchResultKind.index && sections[found[0] + found[2]];
      return section ? found.with(1, `${found[1]} > ${section}`) : found;
    });
    // the best stand last; each place once
    return results.filter(([page, , place], i) => !results.slice(i + 1).some((one) => one[0] === page && one[2] === place));
  };
  const words = Search.htmlToText;
  const formula = /<(span|div) class="math[^>]*>\s*\\[[(](.*?)\\[\])]\s*<\/\1>/gs;
  Search.htmlToText = (page, anchor) =>
    words(page.replace(formula, (_, tag, tex) => (tex.includes("\\") ? "…" : tex)), anchor);
  if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}
