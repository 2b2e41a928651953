// Runs before the page is drawn, so that nobody sees the wrong colours first. Not a module for that reason.
(() => {
  const name = "sameflight-theme";
  const read = () => {
    try { return localStorage.getItem(name) || ""; } catch { return ""; }
  };
  const apply = (theme) => {
    if (theme) document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
  };
  apply(read());
  document.addEventListener("DOMContentLoaded", () => {
    const select = document.getElementById("theme");
    select.value = read();
    select.addEventListener("change", () => {
      try { localStorage.setItem(name, select.value); } catch { /* it holds for this page then */ }
      apply(select.value);
      document.dispatchEvent(new Event("theme"));
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => document.dispatchEvent(new Event("theme")));
  });
})();
