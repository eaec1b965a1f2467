/* On paper every fold is open, but those that only a screen needs. */
window.addEventListener("beforeprint", function () {
  document.querySelectorAll("details:not(.screen)").forEach(function (fold) { fold.open = true; });
});
