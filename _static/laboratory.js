/* The laboratory: its page asks, draws and explains. What is computed is in dpm.js. */
document.addEventListener("DOMContentLoaded", () => {
"use strict";
const root = document.getElementById("laboratory").closest("section");

const $ = name => root.querySelector(`[data-lab="${name}"]`);
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
const REACH = 3;       // the pictures show [−3, 3]², in standard deviations of the data
const MOST = 400;      // points of a data set
const LEVELS = 300;    // noise levels among which the best schedule is sought
const PRECISE = 1e-3;  // bits: at this standard error the counting rests
const number = (x, digits = 3) => (x < 0 ? "−" : "") + Math.abs(x).toFixed(digits);
const short = x => String(Number(x.toPrecision(2)));


/* Data sets: points in the order in which a pen would draw them */

const arc = (x, y, radius, from, to, n) => Array.from({length: n}, (_, k) => {
  const angle = (from + (to - from) * (k + 0.5) / n) * Math.PI;
  return [x + radius * Math.cos(angle), y + radius * Math.sin(angle)];
});
const line = (x, from, to, n) => Array.from({length: n}, (_, k) => [x, from + (to - from) * (k + 0.5) / n]);
const DATA = {
  letters: () => [
    ...arc(-2.3, 0, 0.6, 0, 2, 80), ...line(-1.7, 1.5, -0.6, 45),                                     // d
    ...line(-1.1, 0.6, -1.5, 45), ...arc(-0.5, 0, 0.6, 1, -1, 80),                                    // p
    ...line(0.7, 0.6, -0.6, 30), ...arc(1.1, 0.2, 0.4, 1, 0, 30), ...line(1.5, 0.2, -0.6, 20),
    ...arc(1.9, 0.2, 0.4, 1, 0, 30), ...line(2.3, 0.2, -0.6, 20)],                                    // m
  moons: () => [...arc(-0.5, -0.25, 1, 1, 0, 200), ...arc(0.5, 0.25, 1, 1, 2, 200)],
  ring: () => arc(0, 0, 1, 0, 2, MOST),
  grid: () => Array.from({length: 25}, (_, k) => [k % 5, Math.floor(k / 5)]),
};

/** Points shifted and scaled, so that with noise of this standard deviation the data have mean 0 and mean square 1. */
function standardize(rows, noise) {
  const n = rows.length, mean = [0, 1].map(i => rows.reduce((sum, row) => sum + row[i], 0) / n);
  const square = rows.reduce((sum, [x, y]) => sum + (x - mean[0]) ** 2 + (y - mean[1]) ** 2, 0) / (2 * n);
  const scale = Math.sqrt((1 - noise * noise) / square);
  return Float64Array.from(rows.flatMap(([x, y]) => [(x - mean[0]) * scale, (y - mean[1]) * scale]));
}

const on_grid = value => Math.max(0, Math.min(4095, Math.round((value / REACH + 1) * 2047.5)));
/** Drawn points as letters of an address, three bytes a point; and back. */
function to_address(rows) {
  const bytes = rows.flatMap(row => {
    const [x, y] = row.map(on_grid);
    return [x >> 4, (x & 15) << 4 | y >> 8, y & 255];
  });
  return btoa(String.fromCharCode(...bytes)).replace(/\+/g, "-").replace(/\//g, "_");
}
function from_address(text) {
  const bytes = Uint8Array.from(atob(text.replace(/-/g, "+").replace(/_/g, "/")), letter => letter.charCodeAt(0));
  return Array.from({length: Math.min(MOST, Math.floor(bytes.length / 3))}, (_, k) => {
    const [a, b, c] = bytes.slice(3 * k, 3 * k + 3);
    return [a << 4 | b >> 4, (b & 15) << 8 | c].map(value => (value / 2047.5 - 1) * REACH);
  });
}


/* The settings, and what each choice is called */

const DEFAULTS = {data: "roll", T: 40, schedule: "log_snr_linear", beta_1: 1e-4, model: "diagonal", noise: 0.02, points: ""};
const NAMES = Object.fromEntries([...root.querySelectorAll("[data-lab=settings] option")].map(o => [o.value, o.text]));
const FREE = ["log_snr_linear", "best_schedule"];  // schedules whose β_1 may be chosen
const MODELS = {
  diagonal: (points, v) => new dpm.IdealMixtureReverse(points, v),
  full: (points, v) => new dpm.IdealFullCovarianceReverse(points, v),
  beta: (points, v) => new dpm.IdealMeanReverse(points, v, (q, t) => q.beta[t]),
  posterior: (points, v) => new dpm.IdealMeanReverse(points, v, (q, t) => q.posterior_coefficients.variance[t]),
  network: () => shipped,
};
let shipped = null;

/** What is wrong with the settings, in words; empty if nothing is. */
function complaint({data, T, schedule, model, noise, points}) {
  if (schedule === "linear_beta" && T < 20) return "The rates of 2020 need T of 20 or more: below, the last rate 20/T would exceed 1.";
  if (schedule === "best_schedule" && T > LEVELS) return `The best schedule is sought among ${LEVELS} noise levels: choose T of ${LEVELS} or fewer.`;
  if (model === "network" && (data !== "roll" || noise !== 0.02)) return "The trained network knows one data set, the swiss roll with noise 0.02.";
  if (data === "draw" && new Set(from_address(points).map(String)).size < 2) return "Draw at least two points in the left picture: drag, or use the arrow keys and Enter.";
  return "";
}

function points_of({data, noise, points}) {
  if (data === "roll") return dpm.swiss_roll_points(MOST, noise);
  return standardize(data === "draw" ? from_address(points) : DATA[data](), noise);
}

const label_of = s => `${NAMES[s.data]}, noise ${short(s.noise)}; T = ${s.T}, ${NAMES[s.schedule]}`
  + `${FREE.includes(s.schedule) ? `, β₁ = ${short(s.beta_1)}` : ""}; ${NAMES[s.model]}`;


/* One experiment: trajectories, and the bound counted on more and more draws */

class Experiment {
  constructor(settings) {
    this.settings = settings;
    this.generator = new dpm.Generator(0);
    this.n = 0;
    if (complaint(settings)) return;
    const variance = settings.noise ** 2, points = points_of(settings);
    this.ideal = new dpm.IdealMixtureReverse(points, variance);
    this.p = MODELS[settings.model](points, variance);
    this.start = this.prepare();
    this.forward = [];   // x^t of the forward process, by t
    this.reverse = [];   // x^t of the reverse model, by t, from T down
  }
  /** The schedule, then the two trajectories, a piece at a time. */
  *prepare() {
    const {schedule, T, beta_1} = this.settings, g = this.generator;
    const make = {linear_alpha_bar: dpm.linear_alpha_bar, linear_beta: dpm.linear_beta, cosine_alpha_bar: dpm.cosine_alpha_bar};
    this.doing = "Finding the schedule: a shortest path through noise levels…";
    if (schedule === "best_schedule") {
      this.beta = yield* dpm.best_schedule(this.ideal, T, beta_1, dpm.draw(this.ideal, 250, g), g, LEVELS);
    } else {
      this.beta = schedule === "log_snr_linear" ? dpm.log_snr_linear(T, beta_1) : make[schedule](T);
    }
    const q = this.q = new dpm.GaussianForward(this.beta);
    this.constants = q.entropy_constants();
    [this.kl, this.log_density] = [new Float64Array(T + 1), new Float64Array(T + 1)];
    this.sums = Object.fromEntries(["truth", "first", "steps", "stop", "K", "gap", "at_1"].map(key => [key, [0, 0]]));
    this.doing = "";
    this.counting = this.count();
    while (!this.p) yield;  // the network's weights are on their way
    const M = this.ideal.points.length / 2, noise = g.randn(2 * M), variance = this.ideal.variance;
    let xt = this.ideal.points.map((value, i) => value + Math.sqrt(variance) * noise[i]);
    this.forward[0] = xt;
    for (let t = 1; t <= T; t++) {
      xt = q.transition(xt, t).reparameterize(g.randn(2 * M));
      this.forward[t] = xt;
      if (t % 50 === 0) yield;
    }
    for (const [t, x] of dpm.sample_trajectory(this.p, q, this.settings.model === "network" ? 150 : 300, g)) {
      this.reverse[t] = x;
      yield;
    }
  }
  /** Equation (14) on fresh draws of x⁰ and of one noise for all t, for ever. Its parts add up:
      K = −H(X⁰) − (first step) − (steps 2…T) − (stopping at T). */
  *count() {
    const {q, p, ideal, generator: g, sums, settings: {T, model}} = this, [at_T, at_1, prior] = this.constants;
    const B = model === "network" ? 2 : Math.max(1, Math.min(16, Math.round(160 / T)));
    for (;;) {
      const x0 = dpm.draw(ideal, B, g), noise = g.randn(2 * B), densities = [], kls = [], ideal_kls = [];
      for (let t = 0; t <= T; t++) {
        const xt = t ? q.marginal(x0, t).reparameterize(noise) : x0;
        const moments = t ? ideal.predict_x0(q, xt, t) : null;
        densities.push(t ? moments.log_density : ideal.log_prob(x0));
        if (t > 1) ideal_kls.push(ideal.mean_step_kl(q, t, moments));
        if (t > 1) kls.push(model === "network" ? dpm.step_kl(p, q, x0, t, noise) : p.mean_step_kl(q, t, moments));
        if (t % (model === "network" ? 10 : 100) === 0) yield;
      }
      for (let b = 0; b < B; b++) {
        let [K, best] = [at_T - at_1 - prior, at_T - at_1 - prior];
        for (let t = 0; t <= T; t++) {
          this.log_density[t] += densities[t][b];
          if (t < 2) continue;
          this.kl[t] += kls[t - 2][b];
          K -= kls[t - 2][b];
          best -= ideal_kls[t - 2][b];
        }
        const [q0, q1, qT] = [densities[0][b], densities[1][b], densities[T][b]];
        const values = {truth: q0, first: q0 - q1, steps: q1 - qT - prior - K, stop: qT + prior, K, gap: best - K, at_1: q1};
        for (const key in values) {
          const bits = dpm.to_bits(values[key]);
          sums[key][0] += bits;
          sums[key][1] += bits * bits;
        }
      }
      this.n += B;
      yield;
    }
  }
  /** A slice of work; true while there is some. */
  work() {
    if (!this.start) return false;
    if (!this.done) this.done = this.start.next().done;
    else if (this.n < 1000 || this.row("K")[1] > PRECISE) this.counting.next();
    else return false;
    return true;
  }
  /** Mean and standard error of a part of the bound, bits. */
  row(key) {
    const [sum, squares] = this.sums[key], mean = sum / this.n;
    return [mean, Math.sqrt(Math.max(0, squares / this.n - mean * mean) / this.n)];
  }
  /** Bits that each reverse step 2…T restores, I(X^{t−1};X⁰) − I(X^t;X⁰), and what its KL has above that. */
  per_step() {
    const {T} = this.settings, restored = [], lost = [], x = [];
    for (let t = 2; t <= T; t++) {
      const between = (this.log_density[t] - this.log_density[t - 1]) / this.n;
      const gain = between + Math.log(this.q.noise_variance[t] / this.q.noise_variance[t - 1]);
      x.push(t / T);
      restored.push(dpm.to_bits(gain));
      lost.push(dpm.to_bits(this.kl[t] / this.n - gain));
    }
    return {x, restored, lost};
  }
}


/* Pictures of the plane */

class Plane {
  constructor(canvas) {
    [this.canvas, this.context] = [canvas, canvas.getContext("2d")];
    new ResizeObserver(() => this.resize()).observe(canvas);
    this.resize();
  }
  resize() {
    this.size = this.canvas.clientWidth || 300;
    this.canvas.width = this.canvas.height = Math.round(this.size * devicePixelRatio);
    this.stale = true;
  }
  clear() {
    this.context.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    this.context.clearRect(0, 0, this.size, this.size);
  }
  to([x, y]) {
    return [(x / REACH + 1) * this.size / 2, (1 - y / REACH) * this.size / 2];
  }
  from(event) {
    const box = this.canvas.getBoundingClientRect();
    return [2 * (event.clientX - box.left) / box.width - 1, 1 - 2 * (event.clientY - box.top) / box.height].map(u => u * REACH);
  }
  /** Dots at x [n, 2], of one colour, or of several from the first to the last. */
  dots(x, colours, radius = 1.7) {
    const {context} = this, n = x.length / 2;
    colours.forEach((colour, k) => {
      context.fillStyle = colour;
      context.beginPath();
      for (let b = Math.ceil(k * n / colours.length); b < (k + 1) * n / colours.length; b++) {
        const [u, v] = this.to([x[2 * b], x[2 * b + 1]]);
        context.moveTo(u + radius, v);
        context.arc(u, v, radius, 0, 2 * Math.PI);
      }
      context.fill();
    });
  }
  path(points, colour, width = 1) {
    const {context} = this;
    [context.strokeStyle, context.lineWidth] = [colour, width];
    context.beginPath();
    points.forEach((point, k) => context[k ? "lineTo" : "moveTo"](...this.to(point)));
    context.stroke();
  }
  cross([x, y], colour) {
    const reach = 0.14;
    this.path([[x - reach, y], [x + reach, y]], colour, 2);
    this.path([[x, y - reach], [x, y + reach]], colour, 2);
  }
}

const colour = name => getComputedStyle($("points")).getPropertyValue(`--lab-${name}`).trim();
const ALONG = Array.from({length: 12}, (_, k) => `hsl(${215 + 14 * k}, 65%, 52%)`);  // from the first point to the last

/** The density of x^t as a picture of n × n cells. */
function density_image(p, q, t, n = 72) {
  const {points} = p, root_alpha = Math.sqrt(q.alpha_bar[t]), cell = 2 * REACH / n, heights = new Float64Array(n * n);
  const variance = q.alpha_bar[t] * p.variance + q.noise_variance[t] + cell * cell / 2;  // as seen through cells
  for (let m = 0; m < points.length; m += 2) {  // the noise is round: a product of two normal curves
    const [row, column] = [1, 0].map(i => Float64Array.from({length: n},
      (_, k) => Math.exp(-(((k + 0.5) * cell - REACH - root_alpha * points[m + i]) ** 2) / (2 * variance))));
    for (let r = 0; r < n; r++) {
      if (row[r] > 1e-6) for (let c = 0; c < n; c++) heights[(n - 1 - r) * n + c] += row[r] * column[c];
    }
  }
  const image = new ImageData(n, n), shade = colour("shade").split(",").map(Number), largest = Math.max(...heights);
  heights.forEach((height, k) => image.data.set([...shade, 150 * Math.sqrt(height / largest)], 4 * k));
  const canvas = Object.assign(document.createElement("canvas"), {width: n, height: n});
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/** Where the reverse model moves a point of a grid at timestep t: [[from, to], …], the longest arrow as long as a cell. */
function drift_field({p, q}, t, n = 13) {
  const cell = 2 * REACH / n, place = k => (k + 0.5) * cell - REACH;
  const grid = Float64Array.from({length: 2 * n * n}, (_, i) => place(i & 1 ? Math.floor((i >> 1) / n) : (i >> 1) % n));
  const mean = t < 2 ? q.transition(grid, 1).mean : p.law(q, grid, t, p.predict_x0(q, grid, t)).mean;
  const drift = mean.map((value, i) => value - grid[i]), longest = Math.sqrt(Math.max(...drift.map(d => d * d))) || 1;
  return Array.from({length: n * n}, (_, b) => [0, 1].map(end =>
    [0, 1].map(i => grid[2 * b + i] + end * drift[2 * b + i] * cell / longest)));
}


/* Charts: small, in SVG, so that the page's own colours and letters serve */

const SVG = "http://www.w3.org/2000/svg";
function add(parent, tag, attributes, text = "") {
  const element = parent.appendChild(document.createElementNS(SVG, tag));
  for (const key in attributes) element.setAttribute(key, attributes[key]);
  element.textContent = text;
  return element;
}
const nice = x => {
  const power = 10 ** Math.floor(Math.log10(x));
  return [1, 2, 5, 10].find(step => step * power >= x) * power;
};

/** Curves {x, y, kind} over [0, 1] × [0, top], with the top, and a word under either end. */
function chart(svg, curves, [first, last], unit) {
  const [W, H, L, B] = [400, 130, 46, 22], all = curves.flatMap(({y}) => y).filter(Number.isFinite);
  const top = nice(Math.max(...all, 1e-6)), x = u => L + u * (W - L - 8), y = v => 12 + (1 - Math.max(0, v) / top) * (H - B - 12);
  svg.setAttribute("viewBox", `0 0 ${W} ${H}`);
  svg.replaceChildren();
  if (!all.length) return;
  add(svg, "path", {d: `M${L},12V${H - B}H${W - 8}`, class: "axis"});
  add(svg, "text", {x: L - 5, y: 17, class: "end"}, String(Number(top.toPrecision(2))));
  add(svg, "text", {x: L - 5, y: H - B + 4, class: "end"}, "0");
  add(svg, "text", {x: L, y: H - 6}, first);
  add(svg, "text", {x: W - 8, y: H - 6, class: "end"}, last);
  add(svg, "text", {x: L + 6, y: 16}, unit);
  for (const curve of curves) {
    const line = curve.x.map((u, k) => `${x(u).toFixed(1)},${y(curve.y[k]).toFixed(1)}`);
    if (line.length > 1) add(svg, "polyline", {points: line.join(" "), class: curve.kind});
    else if (line.length) add(svg, "circle", {cx: x(curve.x[0]), cy: y(curve.y[0]), r: 3, class: curve.kind});
  }
}

/** A bar from −H(X⁰) down to K for each experiment: what is lost where, on one scale. */
function bars(svg, experiments) {
  const parts = experiments.map(e => ["first", "steps", "stop"].map(key => Math.max(0, e.row(key)[0])));
  const most = Math.max(1e-6, ...parts.map(values => values.reduce((a, b) => a + b)));
  svg.setAttribute("viewBox", `0 0 400 ${28 * parts.length}`);
  svg.replaceChildren();
  parts.forEach((values, row) => {
    let x = 0;
    values.forEach((value, k) => {
      const width = 400 * value / most;
      add(svg, "rect", {x, y: 28 * row + 4, width, height: 20, class: ["first", "steps", "stop"][k] + (row ? " kept" : "")});
      x += width;
    });
  });
}


/* The points: settings, pictures, numbers */

const form = $("settings"), left = new Plane($("forward")), right = new Plane($("reverse"));
const slider = $("t"), play = $("play"), show = key => $(`show-${key}`).checked;
let now = null, kept = null, playing = !still, direction = 1, t = 0, rest = 0, cursor = [0, 0], pen = null;
const caches = {density: new Map(), drift: new Map()};

const logarithmic = input => {
  const [low, high] = [Number(input.dataset.low), Number(input.dataset.high)];
  return {
    value: () => low * (high / low) ** (input.value / 100),
    set: value => { input.value = 100 * Math.log(value / low) / Math.log(high / low); },
  };
};
const RANGES = {T: Math.round, beta_1: x => Number(x.toPrecision(2)), noise: x => Number(x.toPrecision(2))};

/** The settings in the address; what is not there, or makes no sense, is the default. */
function parse(text) {
  const given = new URLSearchParams(text), settings = {...DEFAULTS};
  for (const key of ["data", "schedule", "model"]) {
    if ([...form.elements[key].options].some(option => option.value === given.get(key))) settings[key] = given.get(key);
  }
  for (const key in RANGES) {
    const value = Number(given.get(key)), {low, high} = form.elements[key].dataset;
    if (given.has(key) && value >= Number(low) && value <= Number(high)) settings[key] = key === "T" ? Math.round(value) : value;
  }
  if (/^[\w-]*$/.test(given.get("points") || "")) settings.points = given.get("points") || "";
  return settings;
}
const unparse = settings => new URLSearchParams(Object.entries(settings).filter(([key, value]) => value !== DEFAULTS[key]
  || key === "data" || key === "T").filter(([key]) => key !== "points" || settings.data === "draw")).toString();
function write_address() {
  const beside = kept ? `&beside=${encodeURIComponent(unparse(kept.settings))}` : "";
  history.replaceState(null, "", `#${unparse(now.settings)}${beside}`);
}
function read_address() {
  const hash = location.hash.slice(1), beside = new URLSearchParams(hash).get("beside");
  kept = beside ? new Experiment(parse(beside)) : null;
  change(parse(hash), false);
}

/** Begin an experiment with these settings. */
function change(settings, write = true) {
  if (settings.model === "network" && !shipped) load_network();
  now = new Experiment(settings);
  for (const cache of Object.values(caches)) cache.clear();
  for (const key of ["data", "schedule", "model"]) form.elements[key].value = settings[key];
  for (const key in RANGES) {
    logarithmic(form.elements[key]).set(settings[key]);
    form.elements[key].nextElementSibling.value = key === "T" ? settings.T : short(settings[key]);
  }
  const free = FREE.includes(settings.schedule);
  form.elements.beta_1.disabled = !free;
  slider.max = settings.T;
  t = Math.min(t, settings.T);
  if (!playing && now.start) t = Math.round(settings.T / 4);
  if (settings.data === "draw" && !now.start) t = 0;
  left.canvas.classList.toggle("pen", settings.data === "draw");
  $("complaint").textContent = complaint(settings);
  $("numbers").hidden = Boolean(complaint(settings));
  $("python").textContent = as_python(settings);
  left.stale = true;
  condition.restart();
  if (write) write_address();
  describe();
}

function load_network() {
  const script = document.createElement("script");
  script.src = $("points").dataset.weights;
  script.onload = () => {
    const all = SWISS_ROLL_WEIGHTS.map(dpm.from_float16), layers = [];
    for (let k = 0; k < all.length; k += 2) layers.push({weight: all[k], bias: all[k + 1]});
    shipped = new dpm.VPrediction(dpm.FourierMLP(layers, 4));
    change(now.settings, false);
  };
  document.head.append(script);
}

form.addEventListener("input", event => {
  const {name} = event.target, settings = {...now.settings};
  if (!(name in DEFAULTS)) return;
  settings[name] = name in RANGES ? RANGES[name](logarithmic(event.target).value()) : event.target.value;
  if (name === "model" && settings.model === "network") Object.assign(settings, {data: "roll", noise: 0.02});
  if (name === "data" && settings.data === "draw") settings.points = "";
  change(settings);
  if (settings.data === "draw" && name === "data") left.canvas.focus();
});
$("keep").onclick = () => { kept = now; change({...now.settings}); };
$("forget").onclick = () => { kept = null; write_address(); numbers(); };
addEventListener("hashchange", read_address);
for (const button of root.querySelectorAll("[data-state]")) {
  button.onclick = () => {
    location.hash = button.dataset.state;
    for (const answer of root.querySelectorAll("[data-answer]")) answer.hidden = answer.dataset.answer !== button.dataset.question;
    if (button.dataset.question === "condition") $("condition").scrollIntoView({behavior: still ? "auto" : "smooth"});
  };
}


/* Drawing data, by pointer or by keys */

function put(point) {
  const rows = from_address(now.settings.points);
  if (rows.length >= MOST) return;
  rows.push(point);
  now.settings.points = to_address(rows);
  left.stale = true;
}
left.canvas.addEventListener("pointerdown", event => {
  if (now.settings.data !== "draw") return;
  event.preventDefault();
  left.canvas.setPointerCapture(event.pointerId);
  if (now.start) now.settings.points = to_address(rows_of(now.ideal.points));  // go on from where they are seen
  [now.start, t, playing] = [null, 0, false];
  put(pen = left.from(event));
});
left.canvas.addEventListener("pointermove", event => {
  if (!pen) return;
  for (const each of event.getCoalescedEvents ? event.getCoalescedEvents() : [event]) {
    const point = left.from(each);
    if (Math.hypot(point[0] - pen[0], point[1] - pen[1]) > 0.05) put(pen = point);
  }
});
const lift = () => {
  if (!pen) return;
  pen = null;
  playing = !still;
  direction = 1;
  change({...now.settings});
};
left.canvas.addEventListener("pointerup", lift);
left.canvas.addEventListener("pointercancel", lift);
left.canvas.addEventListener("keydown", event => {
  const moves = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1]}, move = moves[event.key];
  if (now.settings.data !== "draw" || !(move || ["Enter", " ", "Backspace"].includes(event.key))) return;
  event.preventDefault();
  left.stale = true;
  if (move) {
    cursor = cursor.map((value, i) => Math.max(-REACH, Math.min(REACH, value + move[i] * (event.shiftKey ? 0.5 : 0.1))));
    return;
  }
  const rows = now.start ? rows_of(now.ideal.points) : from_address(now.settings.points);
  if (event.key === "Backspace") rows.pop();
  else if (rows.length < MOST) rows.push(cursor);
  change({...now.settings, points: to_address(rows)});
});
const rows_of = x => Array.from({length: x.length / 2}, (_, b) => [x[2 * b], x[2 * b + 1]]);


/* Time */

play.onclick = () => {
  playing = !playing;
  rest = 0;
  if (playing && t >= now.settings.T) direction = -1;
};
slider.oninput = () => { [playing, t] = [false, Number(slider.value)]; left.stale = true; describe(); };
for (const box of root.querySelectorAll("[data-lab^=show-]")) box.onchange = () => { left.stale = true; };

/** Forth to T, a rest, back to 0, a rest. */
function advance(seconds) {
  const {T} = now.settings;
  if ((rest -= seconds) > 0) return;
  t += direction * seconds * T / 5;
  if (t >= T) [t, direction, rest] = [T, -1, 1];
  if (t <= 0) [t, direction, rest] = [0, 1, 2];
}

/** x^t between two timesteps lies on the straight line between them. */
function between(frames) {
  const below = Math.floor(t), share = t - below, a = frames[below], b = frames[Math.min(below + 1, now.settings.T)];
  return a && b && share ? a.map((value, i) => value + share * (b[i] - value)) : a || b;
}

function cached(cache, key, make) {
  if (!cache.has(key)) cache.set(key, make());
  if (cache.size > 60) cache.delete(cache.keys().next().value);
  return cache.get(key);
}

function draw_planes() {
  left.clear();
  right.clear();
  const ready = now.start && now.q, step = Math.round(t), [ink, muted, accent] = ["ink", "muted", "accent"].map(colour);
  if (ready && show("density")) {
    left.context.drawImage(cached(caches.density, step, () => density_image(now.ideal, now.q, step)), 0, 0, left.size, left.size);
  }
  const x = ready ? between(now.forward) : null;
  if (x) left.dots(x, ALONG);
  else if (now.settings.data === "draw") left.dots(from_address(now.settings.points).flat(), ALONG, 2);
  if (now.settings.data === "draw" && document.activeElement === left.canvas && !pen) left.cross(cursor, ink);
  if (!ready) return;
  if (show("drift") && now.p) {
    for (const [a, b] of cached(caches.drift, step, () => drift_field(now, step))) right.path([a, b], muted, 1.2), right.dots(a, [muted], 1.3);
  }
  const {T} = now.settings, stride = Math.max(1, Math.round(T / 80));
  if (show("paths") && now.reverse[0]) {
    for (let b = 0; b < 30; b++) {
      const path = [];
      for (let s = T; s > t; s -= stride) path.push([now.reverse[s][2 * b], now.reverse[s][2 * b + 1]]);
      const end = between(now.reverse);
      right.path([...path, [end[2 * b], end[2 * b + 1]]], colour("faint"), 1);
    }
  }
  const samples = between(now.reverse);
  if (samples) right.dots(samples, [accent]);
}


/* Numbers and words */

const ROWS = ["truth", "first", "steps", "stop", "K", "gap", "at_1"];
function numbers() {
  if (!now.start || !now.n) return;
  const shown = [now, kept].filter(e => e && e.start && e.n);
  for (const key of ROWS) {
    const cells = $(`row-${key}`).querySelectorAll("td");
    cells.forEach((cell, k) => {
      const [mean, stderr] = shown[k] ? shown[k].row(key) : [];
      cell.textContent = shown[k] ? `${number(mean)} ± ${stderr.toFixed(3)}` : "";
    });
  }
  $("row-gap").hidden = shown.every(e => e.settings.model === "diagonal");
  $("row-ceiling").querySelectorAll("td").forEach((cell, k) => {
    const first = shown[k] ? shown[k].beta[1] : 0;
    cell.textContent = shown[k] ? `${number(-dpm.to_bits(shown[k].constants[1]))} (β₁ = ${short(first)})` : "";
  });
  root.classList.toggle("beside", shown.length > 1);
  $("label-now").textContent = label_of(now.settings);
  $("label-kept").textContent = kept ? label_of(kept.settings) : "";
  $("draws").textContent = `${now.n} draws so far`;
  bars($("bars"), shown);
  const curves = shown.map(e => e.per_step()).reverse(), kinds = shown.length > 1 ? ["kept", "now"] : ["now"];
  for (const key of ["restored", "lost"]) {
    chart($(key), curves.map((curve, k) => ({x: curve.x, y: curve[key], kind: `${key} ${kinds[k]}`})), ["t = 2", "T"], "bits per step");
  }
}

/** The text alternative: what is to be seen, in words. */
function describe() {
  const {settings} = now, n = settings.data === "draw" ? from_address(settings.points).length : now.ideal && now.ideal.points.length / 2;
  const data = `${n} points, ${NAMES[settings.data]}`, share = now.q ? now.q.alpha_bar[Math.round(t)] : 1;
  left.canvas.setAttribute("aria-label", `Forward process at t = ${Math.round(t)} of ${settings.T}: ${data}; ${Math.round(100 * share)} % of the signal is left.`
    + (settings.data === "draw" ? " Draw here: arrow keys move the pen, Enter puts a point, Backspace takes one away." : ""));
  right.canvas.setAttribute("aria-label", `Samples of the reverse model at t = ${Math.round(t)}: round noise at T, the shape of the data at 0.`);
}

const PYTHON = {
  log_snr_linear: s => `schedules.log_snr_linear(${s.T}, ${s.beta_1}, 0.995)`,
  linear_alpha_bar: s => `schedules.linear_alpha_bar(${s.T})`,
  linear_beta: s => `schedules.linear_beta(${s.T})`,
  cosine_alpha_bar: s => `schedules.cosine_alpha_bar(${s.T})`,
  best_schedule: s => `ideal.best_schedule(best, ${s.T}, ${s.beta_1}, draw(1500), generator)`,
  diagonal: "best",
  full: "ideal.IdealFullCovarianceReverse(points, noise**2)",
  beta: "lambda q, xt, t: distributions.Normal(best(q, xt, t).mean, q.beta[t])",
  posterior: "lambda q, xt, t: distributions.Normal(best(q, xt, t).mean, q.posterior_coefficients.variance[t])",
  network: 'dpm.load_model("swiss_roll", "best").p',
};
/** The lines of Python that compute the same. */
function as_python(settings) {
  const {data, noise, schedule, model} = settings;
  if (complaint(settings)) return "";
  const rows = data === "roll" ? [] : rows_of(points_of(settings)).map(row => `[${row.map(v => v.toFixed(4)).join(", ")}]`);
  return `import torch

import dpm
from dpm import bound, distributions, forward, ideal, reverse, schedules, units
from dpm.data.synthetic import swiss_roll_points

generator, noise = torch.Generator().manual_seed(0), ${noise}
points = ${rows.length ? `torch.tensor([${rows.join(", ")}], dtype=torch.float64)` : `swiss_roll_points(${MOST}, noise)`}


def draw(n):
    x0 = points[torch.randint(len(points), (n,), generator=generator)]
    return x0 + noise * torch.randn(n, 2, generator=generator, dtype=torch.float64)


best = ideal.IdealMixtureReverse(points, noise**2)
q = forward.GaussianForward(${PYTHON[schedule](settings)})
p = ${PYTHON[model]}
x0 = draw(10_000)
K = ${["diagonal", "full"].includes(model) ? "ideal.ideal_K(p, q, x0, generator)" : "bound.evaluate(p, q, x0, generator).K"}
print("K", units.mean_and_stderr(units.to_bits(K)), "bits")
print("-H(X0)", units.mean_and_stderr(units.to_bits(best.log_prob(x0))), "bits")
samples = reverse.sample(p, q, x0, generator)`;
}
$("copy").onclick = () => navigator.clipboard.writeText($("python").textContent);


/* Conditioning: the paper's product (22) beside the exact posterior */

const PARTS = 20;
const condition = (() => {
  const controls = $("observation"), planes = [new Plane($("product")), new Plane($("exact"))];
  let y = [0.6, 0.4], job = null, samples = [[], []], log_weights = [], wanted = null;

  function likelihood() {
    const {what, s} = controls.elements, variance = logarithmic(s).value() ** 2;
    s.nextElementSibling.value = short(Math.sqrt(variance));
    return new dpm.GaussianLikelihood(y, [what.value !== "second" ? variance : Infinity, what.value !== "first" ? variance : Infinity]);
  }
  function restart() {
    [samples, log_weights, job] = [[[], []], [], now.start ? run(now) : null];
    draw();
  }
  /** Samples by the perturbed kernels, with their weights, and as many exact ones. */
  function* run(experiment) {
    while (!experiment.q || !experiment.p) yield;
    const {q, ideal, settings} = experiment, r = likelihood(), g = new dpm.Generator(1), n = 200;
    const p = settings.model === "full" ? ideal : experiment.p;  // r multiplies one coordinate at a time
    const {probs, law} = dpm.exact_posterior(ideal, r), M = probs.length;
    wanted = new Float64Array(PARTS);
    probs.forEach((prob, m) => wanted[Math.floor(PARTS * m / M)] += prob);
    const sums = Array.from(probs, (sum => prob => sum += prob)(0));
    while (log_weights.length < 4000) {
      let x, weights;
      for ([, x, weights] of dpm.posterior_trajectory(p, q, r, n, g, dpm.r_schedules[controls.elements.r_schedule.value])) yield;
      const picked = Array.from(g.rand(n), u => Math.min(M - 1, sums.findIndex(sum => u * sums[M - 1] <= sum)));
      const noise = g.randn(2 * n), exact = noise.map((eps, i) => {
        const place = 2 * picked[i >> 1] + (i & 1);
        return law.mean[place] + Math.sqrt(law.variance[place]) * eps;
      });
      samples[0].push(...part_of(ideal, x));
      samples[1].push(...part_of(ideal, exact));
      log_weights.push(...weights);
      if (log_weights.length === n) [planes[0].x, planes[1].x] = [x, exact];
      draw();
      yield;
    }
  }
  /** The share of samples that would have to move to another part of the data. */
  function total_variation(parts, weight) {
    const shares = new Float64Array(PARTS), sum = parts.reduce((total, _, b) => total + weight(b), 0);
    parts.forEach((part, b) => shares[part] += weight(b) / sum);
    return shares.reduce((total, share, k) => total + Math.abs(share - wanted[k]) / 2, 0);
  }
  function draw() {
    planes.forEach((plane, k) => {
      plane.clear();
      if (!now.start) return;
      plane.dots(now.ideal.points, [colour("faint")], 1.2);
      if (samples[0].length) plane.dots(plane.x, [colour(k ? "exact" : "accent")]);
      const what = controls.elements.what.value, ink = colour("ink");
      if (what === "both") plane.cross(y, ink);
      else plane.path(what === "first" ? [[y[0], -REACH], [y[0], REACH]] : [[-REACH, y[1]], [REACH, y[1]]], ink, 1.5);
    });
    if (!samples[0].length) return;
    const percent = (parts, weight = () => 1) => `${Math.round(100 * total_variation(parts, weight))} %`;
    const largest = Math.max(...log_weights), weight = b => Math.exp(log_weights[b] - largest);
    const [sum, squares] = log_weights.reduce(([a, c], _, b) => [a + weight(b), c + weight(b) ** 2], [0, 0]);
    $("verdict").innerHTML = `Of ${log_weights.length} samples of the product, <b>${percent(samples[0])}</b> lie in the wrong part of the data; of as many`
      + ` exact samples, <b>${percent(samples[1])}</b>, by chance. Weighted as (21) asks, <b>${percent(samples[0], weight)}</b>: the weights leave`
      + ` what ${Math.round(sum * sum / squares)} samples are worth.`;
  }
  /** The twentieth of the data, in the order of the pen, that is nearest to each sample. */
  function part_of({points}, x) {
    return rows_of(x).map(([u, v]) => {
      let [nearest, least] = [0, Infinity];
      for (let m = 0; m < points.length; m += 2) {
        const squared = (u - points[m]) ** 2 + (v - points[m + 1]) ** 2;
        if (squared < least) [nearest, least] = [m, squared];
      }
      return Math.floor(PARTS * nearest / points.length);
    });
  }
  function move(point) {
    y = point.map(value => Math.max(-REACH, Math.min(REACH, value)));
    restart();
  }
  for (const plane of planes) {
    plane.canvas.addEventListener("click", event => move(plane.from(event)));
    plane.canvas.addEventListener("keydown", event => {
      const step = {ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1]}[event.key];
      if (!step) return;
      event.preventDefault();
      move(y.map((value, i) => value + step[i]));
    });
  }
  controls.addEventListener("input", restart);
  return {restart, draw, work: () => Boolean(job) && !job.next().done};
})();


/* Bits: the heartbeat, its ideal reversal, and K* by enumeration */

const bits = (() => {
  const [PERIOD, SIZE, SHOWN, n] = [5, 4, 12, 100], points = dpm.heartbeat_sequences(PERIOD * SIZE, PERIOD);
  const controls = $("bits-settings"), slider = $("bits-t"), button = $("bits-play");
  const LENGTHS = [...controls.elements.T.options].map(option => Number(option.value)), K = {flipping: {}, masking: {}};
  const make = {flipping: T => new dpm.BernoulliForward(dpm.linear_alpha_bar(T), 1 / PERIOD), masking: T => new dpm.AbsorbingForward(dpm.linear_alpha_bar(T))};
  const cells = Array.from({length: SHOWN * PERIOD * SIZE}, (_, k) =>
    add($("beats"), "rect", {class: "zero", x: 20 * (k % 20) + 1, y: 20 * Math.floor(k / 20) + 1, width: 18, height: 18, rx: 3}));
  let states = [], job = null, running = false, place = 0;
  const chosen = () => [controls.elements.kernel.value, Number(controls.elements.T.value)];

  function restart() {
    const [kernel, T] = chosen();
    [states, slider.max, place, running, job] = [[], T, T, !still, run(make[kernel](T))];
    draw();
  }
  /** Ancestral samples, then K* of this chain, then of all others. */
  function* run(q) {
    const g = new dpm.Generator(2), pick = probs => {
      const [u] = g.rand(1), k = probs.findIndex((sum => prob => (sum += prob) > u)(0));
      return k < 0 ? probs.length - 1 : k;
    };
    let rows = Array.from({length: n}, () => points[0].map(() => pick(q.prior)));
    states[q.T] = rows;
    for (let t = q.T; t > 0; t--) {
      rows = rows.map(row => {
        const mean = dpm.predict_bits(points, q, row, t);
        return row.map((k, i) => pick(t > 1 ? q.posterior_from_moments(k, mean[i], t) : q.final_step(k, mean[i])));
      });
      states[t - 1] = rows;
      yield;
    }
    draw();
    const [kernel, T] = chosen();
    for (const [name, length] of [[kernel, T], ...LENGTHS.flatMap(length => [["flipping", length], ["masking", length]])]) {
      K[name][length] ??= dpm.to_bits(yield* dpm.enumerate_ideal_K(make[name](length), PERIOD, SIZE));
      draw();
    }
  }
  function draw() {
    const [kernel, T] = chosen(), t = Math.round(place), values = states[t] && make[kernel](2).states, truth = -Math.log2(PERIOD);
    slider.value = t;
    slider.nextElementSibling.value = `${t} of ${T}`;
    button.textContent = running ? "❚❚" : "▶";
    button.setAttribute("aria-label", running ? "pause" : "play");
    if (values) cells.forEach((cell, k) => cell.setAttribute("class", {0: "zero", 0.5: "mask", 1: "one"}[values[states[t][Math.floor(k / 20)][k % 20]]]));
    const valid = (states[0] || []).filter(row => points.some(point => point.every((bit, i) => values && values[row[i]] === bit))).length;
    $("bits-verdict").innerHTML = (states[0] ? `<b>${valid} of ${n}</b> samples are heartbeats. ` : "") + (T in K[kernel]
      ? `K* = <b>${number(K[kernel][T])}</b> bits, exactly; the truth, −H(X⁰), is ${number(truth)}.` : "Counting every state…");
    chart($("K-of-T"), ["flipping", "masking"].map(kind => {
      const lengths = LENGTHS.filter(length => length in K[kind]);
      return {x: lengths.map(length => Math.log(length / 2) / Math.log(100)), y: lengths.map(length => truth - K[kind][length]), kind};
    }), ["T = 2", "T = 200"], "bits below the truth");
  }
  controls.addEventListener("input", restart);
  slider.oninput = () => { [running, place] = [false, Number(slider.value)]; draw(); };
  button.onclick = () => { [running, place] = [!running, place || chosen()[1]]; draw(); };
  return {
    restart,
    work: () => Boolean(job) && !job.next().done,
    advance(seconds) {
      if (!running || !states[0]) return;
      place = Math.max(0, place - seconds * chosen()[1] / 4);
      running = place > 0;
      draw();
    },
  };
})();


/* The clock: a picture, then work until the next */

const seen = new Map();
const watch = new IntersectionObserver(entries => entries.forEach(entry => seen.set(entry.target, entry.isIntersecting)));
for (const name of ["points", "condition", "bits"]) watch.observe($(name));

let before = performance.now(), spoke = 0, pace = 1 / 60;
function frame(time) {
  const seconds = Math.min(0.1, Math.max(1e-3, (time - before) / 1000));
  before = time;
  pace += 0.05 * (seconds - pace);
  if (seen.get($("points"))) {
    if (playing && now.q) advance(seconds);
    if (playing || left.stale || right.stale || !now.done) {
      draw_planes();
      left.stale = right.stale = false;
      slider.value = Math.round(t);
      slider.nextElementSibling.value = `${Math.round(t)} of ${now.settings.T}`;
    }
  }
  if (seen.get($("bits"))) bits.advance(seconds);
  const until = performance.now() + 8;
  let jobs = [[now, "points"], [kept, "points"], [condition, "condition"], [bits, "bits"]].filter(([job, place]) => job && seen.get($(place)));
  while (jobs.length && performance.now() < until) jobs = jobs.filter(([job]) => performance.now() > until || job.work());
  if (time - spoke > (still ? 1000 : 300)) {
    spoke = time;
    numbers();
    play.textContent = playing ? "❚❚" : "▶";
    play.setAttribute("aria-label", playing ? "pause" : "play");
    $("doing").textContent = now.start && now.doing || "";
    $("pace").textContent = `${Math.round(1 / pace)} pictures a second`;
    describe();
  }
  requestAnimationFrame(frame);
}
new MutationObserver(() => { caches.density.clear(); left.stale = true; condition.draw(); })
  .observe(document.documentElement, {attributes: true, attributeFilter: ["data-theme"]});
read_address();
bits.restart();
requestAnimationFrame(frame);
});
