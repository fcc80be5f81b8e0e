// What the theme leaves without a name for a screen reader, and wide things that a keyboard shall be able to scroll.
document.addEventListener("DOMContentLoaded", () => {
  for (const summary of document.querySelectorAll(".bd-sidebar summary, nav summary")) {
    const link = summary.closest("li")?.querySelector("a");
    summary.setAttribute("aria-label", `Pages of ${link ? link.textContent.trim() : "this part"}`);
  }
  for (const button of document.querySelectorAll(".search-button-field")) {
    button.removeAttribute("aria-label");
  }
  for (const wide of document.querySelectorAll(".bd-article pre, .bd-article div.math, .pst-scrollable-table-container")) {
    if (wide.scrollWidth > wide.clientWidth) wide.tabIndex = 0;
  }
});
