// What the theme leaves without a name for a screen reader, and wide things that a keyboard shall be able to scroll.
function reachWide() {
  for (const wide of document.querySelectorAll(".bd-article :is(pre, .math), .pst-scrollable-table-container")) {
    if (wide.scrollWidth > wide.clientWidth) wide.tabIndex = 0;
    else wide.removeAttribute("tabindex");
  }
}

document.addEventListener("DOMContentLoaded", async () => {
  for (const summary of document.querySelectorAll(".bd-sidebar summary, nav summary")) {
    const link = summary.closest("li")?.querySelector("a");
    summary.setAttribute("aria-label", `Pages of ${link ? link.textContent.trim() : "this part"}`);
  }
  for (const button of document.querySelectorAll(".search-button-field")) {
    button.removeAttribute("aria-label");
  }
  await window.MathJax?.startup?.promise; // how wide a formula is shows when it is set
  reachWide();
  addEventListener("resize", reachWide);
  document.addEventListener("toggle", reachWide, true); // what was folded has a width when it opens
});
