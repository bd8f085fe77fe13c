// Before the first paint, so that a dark page does not flash in white: no module, for those wait.
"use strict";
try {
  const kept = localStorage.getItem("unraze-theme");
  if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept;
} catch {
  // storage may be forbidden; then the system's theme holds
}
