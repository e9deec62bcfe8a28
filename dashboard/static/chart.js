// Stacked bars of accepted tokens per node over time, drawn by BokehJS.
// @ts-check
import { count, id } from "./format.js";

const NUM_COLORS = 8;

/** BokehJS makes style elements as it goes; under the page's policy they need its nonce. */
const lendNonce = () => {
  const nonce = /** @type {HTMLElement | null} */ (document.querySelector("link[nonce]"))?.nonce;
  const create = Document.prototype.createElement;
  /** @this {Document} @param {string} tag @param {any} options */
  Document.prototype.createElement = function (tag, options) {
    const made = create.call(this, tag, options);
    if (made instanceof HTMLStyleElement && nonce) made.nonce = nonce;
    return made;
  };
};

/** @param {string} src */
const loadScript = (src) =>
  new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = src;
    script.onload = () => resolve(undefined);
    script.onerror = () => reject(new Error(`cannot load ${src}`));
    document.head.append(script);
  });

/** The next round number above the highest bar. @param {number} highest */
const roundUp = (highest) => {
  const power = 10 ** Math.max(1, Math.floor(Math.log10(highest)));
  return power * ([1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((step) => step * power >= highest) ?? 10);
};

export class Chart {
  /** @param {HTMLElement} box @param {HTMLElement} legend @param {HTMLElement} empty */
  constructor(box, legend, empty) {
    this.box = box;
    this.legend = legend;
    this.empty = empty;
    /** @type {any} */ this.latest = null;
    /** @type {any} */ this.source = null;
    /** @type {any} */ this.figure = null;
    /** @type {any[]} */ this.bars = [];
    /** @type {Map<string, number>} */ this.colorOf = new Map();
  }

  /** @param {string[]} scripts */
  async load(scripts) {
    lendNonce();
    for (const src of scripts) await loadScript(src);
    await this.draw(/** @type {any} */ (window).Bokeh);
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    scheme.addEventListener("change", () => this.paint());
    if (this.latest) this.show(this.latest);
  }

  /** @param {any} Bokeh */
  async draw(Bokeh) {
    /** @type {Record<string, number[]>} */
    const data = { x: [] };
    for (let i = 0; i < NUM_COLORS; i++) data[`from${i}`] = data[`to${i}`] = [];
    this.source = new Bokeh.ColumnDataSource({ data });
    this.figure = Bokeh.Plotting.figure({
      height: 240,
      sizing_mode: "stretch_width",
      min_width: 100,
      toolbar_location: null,
      tools: [],
      x_range: new Bokeh.Range1d({ start: -10, end: 0 }),
      y_range: new Bokeh.Range1d({ start: 0, end: 10 }),
      border_fill_color: null,
      background_fill_color: null,
      outline_line_color: null,
      min_border_right: 18,
    });
    for (let i = 0; i < NUM_COLORS; i++) {
      const place = { x: { field: "x" }, bottom: { field: `from${i}` }, top: { field: `to${i}` } };
      this.bars.push(this.figure.vbar({ ...place, width: 0.13, source: this.source, line_color: null }));
    }
    const [x] = this.figure.xaxis;
    const ticks = [-10, -8, -6, -4, -2, 0];
    x.ticker = new Bokeh.FixedTicker({ ticks, minor_ticks: [] });
    x.major_label_overrides = new Map(ticks.map((t) => [t, t ? `${-t} min ago` : "now"]));
    this.narrow = matchMedia("(max-width: 480px)");
    const thin = () => {
      x.ticker.ticks = this.narrow?.matches ? [-10, -5, 0] : ticks;
    };
    x.major_label_overrides.set(-5, "5 min ago");
    thin();
    this.narrow.addEventListener("change", thin);
    for (const axis of [...this.figure.xaxis, ...this.figure.yaxis]) {
      axis.axis_line_color = null;
      axis.major_tick_line_color = null;
      axis.minor_tick_line_color = null;
      axis.major_label_text_font = "system-ui, sans-serif";
      axis.major_label_text_font_size = "12px";
    }
    for (const grid of this.figure.xgrid) grid.grid_line_color = null;
    this.paint();
    await Bokeh.Plotting.show(this.figure, this.box);
  }

  /** Take the colours from the style sheet, which knows light from dark. */
  paint() {
    if (!this.figure) return;
    const style = getComputedStyle(document.documentElement);
    const color = (/** @type {string} */ name) => style.getPropertyValue(name).trim();
    this.bars.forEach((bar, i) => {
      bar.glyph.fill_color = { value: color(`--series-${i}`) };
    });
    for (const axis of [...this.figure.xaxis, ...this.figure.yaxis]) {
      axis.major_label_text_color = color("--quiet");
    }
    for (const grid of this.figure.ygrid) grid.grid_line_color = color("--line");
  }

  /** A node keeps its colour while it is shown; the rest have the last one. @param {any[]} series */
  assign(series) {
    const names = new Set(series.map((one) => one.name));
    for (const name of this.colorOf.keys()) if (!names.has(name)) this.colorOf.delete(name);
    for (const name of names) {
      if (this.colorOf.has(name)) continue;
      const taken = new Set(this.colorOf.values());
      let color = name === "others" ? NUM_COLORS - 1 : 0;
      while (taken.has(color)) color++;
      this.colorOf.set(name, color);
    }
  }

  /** @param {{ start_s: number, bucket_s: number, series: any[] }} data */
  show(data) {
    this.latest = data;
    const isEmpty = data.series.length === 0;
    this.empty.hidden = !isEmpty;
    this.box.classList.toggle("away", isEmpty);
    this.assign(data.series);
    this.showLegend(data.series);
    if (!this.source) return;
    const length = isEmpty ? 0 : data.series[0].num_accepted.length;
    const minutes = data.bucket_s / 60;
    const columns = /** @type {Record<string, number[]>} */ ({
      x: Array.from({ length }, (_, i) => (i + 0.5 - length) * minutes),
    });
    for (let i = 0; i < NUM_COLORS; i++) {
      columns[`from${i}`] = columns[`to${i}`] = new Array(length).fill(0);
    }
    let below = new Array(length).fill(0);
    for (const one of data.series) {
      const color = this.colorOf.get(one.name) ?? 0;
      const above = below.map((value, i) => value + one.num_accepted[i]);
      columns[`from${color}`] = below;
      columns[`to${color}`] = above;
      below = above;
    }
    this.source.data = columns;
    this.figure.y_range.end = roundUp(Math.max(10, ...below));
  }

  /** @param {any[]} series */
  showLegend(series) {
    while (this.legend.children.length > series.length) this.legend.lastElementChild?.remove();
    series.forEach((one, i) => {
      let item = this.legend.children[i];
      if (!item) {
        item = document.createElement("li");
        this.legend.append(item);
      }
      const total = one.num_accepted.reduce((a, /** @type {number} */ b) => a + b, 0);
      const text = `${id(one.name)} ${count(total)}`;
      if (item.textContent !== text) item.textContent = text;
      item.className = `series-${this.colorOf.get(one.name) ?? 0}`;
      item.setAttribute("title", one.name);
    });
  }
}
