// What the theme leaves without a name for a screen reader, and wide things that a keyboard shall be able to scroll.
const reach = new ResizeObserver((changed) => {
  for (const { target } of changed) {
    if (target.scrollWidth > target.clientWidth + 1) target.tabIndex = 0;
    else target.removeAttribute("tabindex");
  }
});

document.addEventListener("DOMContentLoaded", () => {
  for (const summary of document.querySelectorAll(".bd-sidebar summary, nav summary")) {
    const link = summary.closest("li")?.querySelector("a");
    summary.setAttribute("aria-label", `Pages of ${link ? link.textContent.trim() : "this part"}`);
  }
  const sidebar = document.querySelector(".bd-sidebar-primary");
  sidebar?.setAttribute("role", "complementary");
  sidebar?.setAttribute("aria-label", "Book");
  for (const button of document.querySelectorAll(".search-button-field")) {
    button.removeAttribute("aria-label");
  }
  for (const wide of document.querySelectorAll(".bd-article :is(pre, .math), .pst-scrollable-table-container")) {
    reach.observe(wide); // a formula that is set, and what is unfolded, changes its size
  }
  // On a phone, the contents of the page close when they have led somewhere.
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("dialog a[href^='#']");
    if (link) setTimeout(() => link.closest("dialog")?.close());
  });
  // Formulas far from the view are set when it nears them, or when the page is printed: then their fonts are there.
  window.MathJax?.startup?.promise.then(() => document.fonts.forEach((font) => font.load()));
});
