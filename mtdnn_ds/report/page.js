// Draws the figures of a page in the page's colours, again when those change, and for paper. Computes nothing of what they show.
"use strict";
(() => {
const root = document.documentElement;
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
const charts = [...document.querySelectorAll("figure.chart")].map((card) => ({
  place: card.querySelector(".plot"),
  isWide: card.classList.contains("wide"),
  figure: JSON.parse(card.querySelector("script").textContent),
}));

const config = {
  responsive: true,
  displaylogo: false,
  modeBarButtons: [["toImage", "resetScale2d"]],
  toImageButtonOptions: { format: "svg" },
};

// The figure with the present value of every variable, as in "color": "var(--s0)".
function colored(part, style, isColor = false) {
  if (typeof part === "string" && isColor)
    return part.replace(/^var\((--\w+)\)$/, (_, name) => style.getPropertyValue(name).trim());
  if (Array.isArray(part)) return part.map((each) => colored(each, style, isColor));
  if (part === null || typeof part !== "object") return part;
  return Object.fromEntries(
    Object.entries(part).map(([key, value]) => [key, colored(value, style, key.includes("color"))]));
}

function draw({ place, figure }, size = {}) {
  const { data, layout } = colored(figure, getComputedStyle(root));
  // One revision for ever: what was hidden or magnified stays so in the other colours.
  const dragmode = matchMedia("(pointer: coarse)").matches ? false : "zoom";
  return Plotly.react(place, data, { ...layout, ...size, dragmode, uirevision: 1 }, config);
}

// One after the other, the nearest to what is read first, so that the page answers meanwhile.
async function drawAll() {
  const distance = ({ place }) => Math.abs(place.getBoundingClientRect().top - innerHeight / 2);
  for (const chart of [...charts].sort((one, other) => distance(one) - distance(other))) {
    draw(chart);
    await new Promise((goOn) => setTimeout(goOn));
  }
}

document.getElementById("theme").onclick = () => {
  const isDark = root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches;
  root.dataset.theme = isDark ? "light" : "dark";
  drawAll();
};
prefersDark.addEventListener("change", drawAll);

// Paper is light, and narrower than most screens.
let themeOnScreen;
addEventListener("beforeprint", () => {
  themeOnScreen = root.dataset.theme ?? "";
  root.dataset.theme = "light";
  for (const chart of charts) {
    const width = Math.min(chart.place.clientWidth, chart.isWide ? 660 : 310);
    draw(chart, { width, autosize: false });
  }
});
addEventListener("afterprint", () => {
  root.dataset.theme = themeOnScreen;
  drawAll();
});

drawAll();
})();
