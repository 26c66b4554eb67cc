/* The laboratory: its page asks, draws and explains. What is computed is in dpm.js. */
document.addEventListener("DOMContentLoaded", () => {
"use strict";
const {list} = dpm, root = document.getElementById("laboratory").closest("section");
const $ = name => root.querySelector(`[data-lab="${name}"]`);
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
const REACH = 3;       // pictures show [−3, 3]²
const MOST = 400;      // points of a data set
const LEVELS = 300;    // noise levels that a best schedule may pass
const PRECISE = 1e-3;  // bits: the standard error at which counting rests
const number = x => (x < 0 ? "−" : "") + Math.abs(x).toFixed(3);
const short = x => String(Number(x.toPrecision(2)));
const rows_of = x => list(x.length / 2, b => [x[2 * b], x[2 * b + 1]]);
const within = (x, reach = REACH) => Math.max(-reach, Math.min(reach, x));


/* Data sets: points in the order in which a pen would draw them */

const evenly = (from, to, n) => list(n, k => from + (to - from) * (k + 0.5) / n);
const line = (x, from, to, n) => evenly(from, to, n).map(y => [x, y]);
const arc = (x, y, radius, from, to, n) => evenly(from * Math.PI, to * Math.PI, n)
  .map(angle => [x + radius * Math.cos(angle), y + radius * Math.sin(angle)]);
const DATA = {
  letters: () => [  // d, p and m
    ...arc(-2.3, 0, 0.6, 0, 2, 80), ...line(-1.7, 1.5, -0.6, 45), ...line(-1.1, 0.6, -1.5, 45), ...arc(-0.5, 0, 0.6, 1, -1, 80),
    ...line(0.7, 0.6, -0.6, 30), ...arc(1.1, 0.2, 0.4, 1, 0, 30), ...line(1.5, 0.2, -0.6, 20), ...arc(1.9, 0.2, 0.4, 1, 0, 30),
    ...line(2.3, 0.2, -0.6, 20)],
  moons: () => [...arc(-0.5, -0.25, 1, 1, 0, 200), ...arc(0.5, 0.25, 1, 1, 2, 200)],
  ring: () => arc(0, 0, 1, 0, 2, MOST),
  grid: () => list(25, k => [k % 5, Math.floor(k / 5)]),
  draw: points => from_address(points),
};

/** Points shifted and scaled, so that with their noise the data have mean 0 and mean square 1. */
function standardize(rows, noise) {
  const n = rows.length, mean = [0, 1].map(i => rows.reduce((sum, row) => sum + row[i], 0) / n);
  const centred = rows.flatMap(([x, y]) => [x - mean[0], y - mean[1]]);
  const scale = Math.sqrt((1 - noise * noise) / (centred.reduce((sum, x) => sum + x * x, 0) / (2 * n)));
  return Float64Array.from(centred, x => x * scale);
}

/** Drawn points as letters of an address, three bytes a point; and back. */
function to_address(rows) {
  const bytes = rows.flatMap(row => {
    const [x, y] = row.map(value => Math.round((within(value) / REACH + 1) * 2047.5));
    return [x >> 4, (x & 15) << 4 | y >> 8, y & 255];
  });
  return btoa(String.fromCharCode(...bytes)).replace(/\+/g, "-").replace(/\//g, "_");
}
function from_address(text) {
  const bytes = Uint8Array.from(atob(text.replace(/-/g, "+").replace(/_/g, "/")), letter => letter.charCodeAt(0));
  return list(Math.min(MOST, Math.floor(bytes.length / 3)), k => {
    const [a, b, c] = bytes.slice(3 * k, 3 * k + 3);
    return [a << 4 | b >> 4, (b & 15) << 8 | c].map(value => (value / 2047.5 - 1) * REACH);
  });
}


/* The settings */

const form = $("settings");
const DEFAULTS = {data: "roll", T: 40, schedule: "log_snr_linear", beta_1: 1e-4, model: "diagonal", noise: 0.02, points: ""};
const RANGES = {T: Math.round, beta_1: x => Number(x.toPrecision(2)), noise: x => Number(x.toPrecision(2))};  // sliders of log₁₀
const CHOICES = ["data", "schedule", "model"];
const NAMES = Object.fromEntries([...form.querySelectorAll("option")].map(option => [option.value, option.text]));
const MODELS = {
  diagonal: (...data) => new dpm.IdealMixtureReverse(...data),
  full: (...data) => new dpm.IdealFullCovarianceReverse(...data),
  beta: (...data) => new dpm.IdealMeanReverse(...data, (q, t) => q.beta[t]),
  posterior: (...data) => new dpm.IdealMeanReverse(...data, (q, t) => q.posterior_coefficients.variance[t]),
  network: () => shipped,
};
let shipped = null;  // the trained network, once its weights are there
const label_of = ({data, noise, T, schedule, model}) => `${NAMES[data]}, noise ${short(noise)}; T = ${T}, ${NAMES[schedule]}; ${NAMES[model]}`;

/** What is wrong with the settings, in words; empty if nothing is. */
function complaint({data, T, schedule, model, noise, points}) {
  if (schedule === "linear_beta" && T < 20) return "With T below 20 the last rate of 2020, 20/T, would exceed 1.";
  if (schedule === "best_schedule" && T > LEVELS) return `The best schedule is sought for ${LEVELS} steps or fewer.`;
  if (model === "network" && (data !== "roll" || noise !== 0.02)) return "The trained network knows the swiss roll with noise 0.02 only.";
  const few = data === "draw" && new Set(from_address(points).map(String)).size < 2;
  return few ? "Draw two points or more in the left picture: drag, or use the arrow keys and Enter." : "";
}

const points_of = ({data, noise, points}) =>
  data === "roll" ? dpm.swiss_roll_points(MOST, noise) : standardize(DATA[data](points), noise);

/** The settings in an address; what makes no sense there is the default. */
function parse(text) {
  const given = new URLSearchParams(text), settings = {...DEFAULTS};
  for (const key of CHOICES) {
    if ([...form[key].options].some(option => option.value === given.get(key))) settings[key] = given.get(key);
  }
  for (const key in RANGES) {
    const log = Math.log10(given.get(key)), {min, max} = form[key];
    if (log > min - 0.001 && log < +max + 0.001) settings[key] = Number(given.get(key));
  }
  settings.T = Math.round(settings.T);
  if (/^([\w-]{4})+$/.test(given.get("points") || "")) settings.points = given.get("points");
  return settings;
}
const unparse = settings => new URLSearchParams(Object.entries(settings).filter(([key, value]) =>
  ["data", "T"].includes(key) || value !== DEFAULTS[key] && (key !== "points" || settings.data === "draw"))).toString();

/** The page's lines of Python, filled in. */
function as_python(settings) {
  const rows = () => rows_of(points_of(settings)).map(row => `[${row.map(v => v.toFixed(4)).join(", ")}]`);
  const words = {...settings, points: settings.data === "roll" ? "" : `torch.tensor([${rows().join(", ")}], dtype=torch.float64)`};
  for (const key of CHOICES) words[key] = form[key].selectedOptions[0].dataset.python || words.points;
  const fill = text => text.replace(/<(\w+)>/g, (_, key) => key in words ? fill(String(words[key])) : "");
  return fill($("python-lines").content.textContent.trim());
}


/* One experiment: trajectories, and the bound on more and more draws */

class Experiment {
  constructor(settings) {
    this.settings = settings;
    this.n = 0;
    if (complaint(settings)) return;
    const variance = settings.noise ** 2, points = points_of(settings);
    this.generator = new dpm.Generator(0);
    this.ideal = new dpm.IdealMixtureReverse(points, variance);
    this.p = MODELS[settings.model](points, variance);
    [this.forward, this.reverse] = [[], []];  // x^t of both processes, by t
    this.start = this.prepare();
    this.counting = this.count();
  }
  /** The schedule, then the two trajectories, a piece at a time. */
  *prepare() {
    const {settings, ideal, generator: g} = this, {schedule, T, beta_1, model} = settings;
    this.beta = schedule === "best_schedule" ? yield* dpm.best_schedule(ideal, T, beta_1, dpm.draw(ideal, 250, g), g, LEVELS)
      : dpm[schedule](T, beta_1);
    const q = this.q = new dpm.GaussianForward(this.beta), M = ideal.points.length, noise = g.randn(M);
    while (!this.p) yield;  // the network's weights are on their way
    let xt = ideal.points.map((value, i) => value + settings.noise * noise[i]);
    for (let t = 0; t <= T; t++) {
      if (t) xt = q.transition(xt, t).reparameterize(g.randn(M));
      this.forward[t] = xt;
      if (t % 50 === 0) yield;
    }
    for (const [t, x] of dpm.sample_trajectory(this.p, q, model === "network" || T > 200 ? 100 : 300, g)) yield this.reverse[t] = x;
  }
  /** (14) on fresh draws, each with one noise for all t: K = truth − first − steps − stop. Of many steps a draw sees some,
      and a batch all. */
  *count() {
    const {q, p, ideal, generator: g, settings: {T, model}} = this, [at_T, at_1, prior] = q.entropy_constants();
    const stride = Math.ceil(T / 100), B = this.batch = stride * Math.ceil(4 / stride), trained = model === "network";
    [this.kl, this.gain, this.counts, this.sums, this.ceiling] = [...list(3, () => new Float64Array(T + 1)), {}, -at_1];
    for (;;) {
      let truth = 0, after_1 = 0, after_T = 0, K = at_T - at_1 - prior, best = K;
      for (let b = 0; b < B; b++) {
        const x0 = dpm.draw(ideal, 1, g), noise = g.randn(2), at = t => {
          const xt = q.marginal(x0, t).reparameterize(noise);
          return [xt, ideal.predict_x0(q, xt, t)];
        };
        const log_q = t => at(t)[1].log_density[0];
        [truth, after_1, after_T] = [truth + ideal.log_prob(x0)[0] / B, after_1 + log_q(1) / B, after_T + log_q(T) / B];
        for (let t = 2 + b % stride, before = 0, previous = 0; t <= T; t += stride) {
          if (previous !== t - 1) before = log_q(t - 1);
          const [xt, moments] = at(t), [kl, best_kl] = [p, ideal].map(model => dpm.mean_step_kl(q, xt, t, moments,
            model.law(q, xt, t, trained && model === p ? p.predict_x0(q, xt, t) : moments))[0]);
          this.kl[t] += kl;
          this.gain[t] += moments.log_density[0] - before + Math.log(q.noise_variance[t] / q.noise_variance[t - 1]);
          this.counts[t] += 1;
          K -= kl * stride / B;
          best -= best_kl * stride / B;
          [before, previous] = [moments.log_density[0], t];
        }
        yield;
      }
      this.add({truth, first: truth - after_1, steps: after_1 - after_T - prior - K, stop: after_T + prior, K, gap: best - K, after_1});
      this.n += 1;
    }
  }
  add(nats) {
    for (const key in nats) {
      const bits = dpm.to_bits(nats[key]), [sum, squares] = this.sums[key] || [0, 0];
      this.sums[key] = [sum + bits, squares + bits * bits];
    }
  }
  /** A slice of work; false where none is left. */
  work() {
    if (!this.start) return false;
    if (!this.ready) this.ready = this.start.next().done;
    const wanted = this.q && this.p && (this.n < 250 || this.row("K")[1] > PRECISE);
    if (wanted) this.counting.next();
    return wanted || !this.ready;
  }
  /** Mean and standard error of a part of the bound, bits. */
  row(key) {
    const [sum, squares] = this.sums[key], mean = sum / this.n;
    return [mean, Math.sqrt(Math.max(0, squares / this.n - mean * mean) / (this.n - 1))];
  }
  /** Bits that each reverse step restores, I(X^{t−1};X⁰) − I(X^t;X⁰), and what its KL has above that. */
  per_step() {
    const seen = list(this.settings.T + 1, t => t).filter(t => this.counts[t]), mean = (sums, t) => dpm.to_bits(sums[t] / this.counts[t]);
    const restored = seen.map(t => mean(this.gain, t)), lost = seen.map((t, k) => mean(this.kl, t) - restored[k]);
    return {x: seen.map(t => t / this.settings.T), restored, lost};
  }
}


/* Pictures of the plane */

const colour = name => getComputedStyle($("points")).getPropertyValue(`--lab-${name}`).trim();
const ALONG = list(12, k => `hsl(${215 + 14 * k}, 65%, 52%)`);  // from the first point to the last

class Plane {
  constructor(name) {
    this.canvas = $(name);
    this.context = this.canvas.getContext("2d");
    new ResizeObserver(() => this.resize()).observe(this.canvas);
    this.resize();
  }
  resize() {
    this.size = this.canvas.clientWidth || 300;
    this.canvas.width = this.canvas.height = Math.round(this.size * devicePixelRatio);
    this.context.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    this.stale = true;
  }
  clear() {
    this.context.clearRect(0, 0, this.size, this.size);
  }
  to([x, y]) {
    return [(x / REACH + 1) * this.size / 2, (1 - y / REACH) * this.size / 2];
  }
  from(event) {
    const {left, top, width} = this.canvas.getBoundingClientRect();
    return [2 * (event.clientX - left) / width - 1, 1 - 2 * (event.clientY - top) / width].map(u => within(u * REACH));
  }
  /** Dots at x [n, 2], coloured from the first to the last. */
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
    [this.context.strokeStyle, this.context.lineWidth] = [colour, width];
    this.context.beginPath();
    points.forEach((point, k) => this.context[k ? "lineTo" : "moveTo"](...this.to(point)));
    this.context.stroke();
  }
  cross([x, y]) {
    for (const [u, v] of [[0.14, 0], [0, 0.14]]) this.path([[x - u, y - v], [x + u, y + v]], colour("ink"), 2);
  }
  on_arrows(move) {
    this.canvas.addEventListener("keydown", event => {
      const way = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1]}[event.key];
      if (!way) return;
      event.preventDefault();
      move(way.map(u => u / 10));
    });
  }
}

/** The density of x^t, n × n cells. */
function density_image({ideal: {points, variance}, q}, t, n = 72) {
  const root_alpha = Math.sqrt(q.alpha_bar[t]), cell = 2 * REACH / n, heights = new Float64Array(n * n);
  const total = q.alpha_bar[t] * variance + q.noise_variance[t] + cell * cell / 2;  // as seen through cells
  for (let m = 0; m < points.length; m += 2) {  // the noise is round: a product of two normal curves
    const [row, column] = [1, 0].map(i => Float64Array.from({length: n},
      (_, k) => Math.exp(-(((k + 0.5) * cell - REACH - root_alpha * points[m + i]) ** 2) / (2 * total))));
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

/** Where a reverse step moves the points of a grid: [[from, to], …], the longest as long as a cell. */
function drift_field({p, q}, t, n = 13) {
  const cell = 2 * REACH / n, place = k => (k + 0.5) * cell - REACH;
  const grid = Float64Array.from({length: 2 * n * n}, (_, i) => place(i & 1 ? Math.floor((i >> 1) / n) : (i >> 1) % n));
  const drift = dpm.reverse_step(p, q, grid, Math.max(1, t)).mean.map((value, i) => value - grid[i]);
  const scale = cell / Math.max(...drift.map(Math.abs), 1e-12);
  return rows_of(grid).map(([x, y], b) => [[x, y], [x + drift[2 * b] * scale, y + drift[2 * b + 1] * scale]]);
}


/* Charts, in SVG */

function add(parent, tag, attributes, text = "") {
  const element = parent.appendChild(document.createElementNS("http://www.w3.org/2000/svg", tag));
  for (const key in attributes) element.setAttribute(key, attributes[key]);
  element.textContent = text;
  return element;
}

/** Curves {x, y, kind} over [0, 1], with a word under either end. */
function chart(svg, curves, first, last, unit) {
  const [left, right, top, bottom] = [46, 392, 22, 118], most = Math.max(1e-6, ...curves.flatMap(({y}) => y));
  const power = 10 ** Math.floor(Math.log10(most)), high = [1, 2, 5, 10].map(step => step * power).find(step => step >= most);
  const place = (u, v) => [left + u * (right - left), bottom - Math.max(0, v) / high * (bottom - top)].map(z => z.toFixed(1));
  svg.setAttribute("viewBox", "0 0 400 140");
  svg.replaceChildren();
  if (!curves.some(({x}) => x.length)) return;
  add(svg, "path", {d: `M${left},${top}V${bottom}H${right}`, class: "axis"});
  for (const [x, y, kind, text] of [[left - 5, top + 4, "end", short(high)], [left - 5, bottom + 4, "end", "0"], [left, 136, "", first],
    [right, 136, "end", last], [left, 12, "", unit]]) add(svg, "text", {x, y, class: kind}, text);
  for (const {x, y, kind} of curves) {
    if (x.length > 1) add(svg, "polyline", {points: x.map((u, k) => place(u, y[k])).join(" "), class: kind});
    else if (x.length) add(svg, "circle", {cx: place(x[0], 0)[0], cy: place(0, y[0])[1], r: 3, class: kind});
  }
}

function bars(svg, experiments) {
  const keys = ["first", "steps", "stop"], parts = experiments.map(e => keys.map(key => Math.max(0, e.row(key)[0])));
  const most = Math.max(1e-6, ...parts.map(values => values.reduce((a, b) => a + b)));
  svg.setAttribute("viewBox", `0 0 400 ${18 * parts.length}`);
  svg.replaceChildren();
  parts.forEach((values, row) => values.reduce((x, value, k) => {
    add(svg, "rect", {x, y: 18 * row + 2, width: 400 * value / most, height: 14, class: keys[k] + (row ? " kept" : "")});
    return x + 400 * value / most;
  }, 0));
}


/* The points */

const left = new Plane("forward"), right = new Plane("reverse"), slider = $("t"), show = key => $(`show-${key}`).checked;
const cache = new Map();  // pictures of the timesteps seen last
let now = null, kept = null, playing = !still, direction = 1, t = 0, rest = 0, cursor = [0, 0], pen = null;

function write_address() {
  history.replaceState(null, "", `#${unparse(now.settings)}${kept ? `&beside=${encodeURIComponent(unparse(kept.settings))}` : ""}`);
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
  cache.clear();
  for (const key of CHOICES) form[key].value = settings[key];
  for (const key in RANGES) {
    form[key].value = Math.log10(settings[key]);
    form[key].nextElementSibling.value = key === "T" ? settings.T : short(settings[key]);
  }
  form.beta_1.disabled = !["log_snr_linear", "best_schedule"].includes(settings.schedule);
  slider.max = settings.T;
  t = now.start ? playing ? Math.min(t, settings.T) : Math.round(settings.T / 4) : 0;
  left.canvas.classList.toggle("pen", settings.data === "draw");
  $("complaint").textContent = complaint(settings);
  $("numbers").hidden = !now.start;
  $("python").textContent = now.start ? as_python(settings) : "";
  left.stale = true;
  condition.restart();
  if (write) write_address();
}

function load_network() {
  const script = Object.assign(document.createElement("script"), {src: $("points").dataset.weights});
  script.onload = () => {
    const all = SWISS_ROLL_WEIGHTS.map(dpm.from_float16), layers = [];
    for (let k = 0; k < all.length; k += 2) layers.push({weight: all[k], bias: all[k + 1]});
    shipped = new dpm.VPrediction(dpm.FourierMLP(layers, 4));
    read_address();
  };
  document.head.append(script);
}

form.addEventListener("input", ({target: {name, value}}) => {
  const settings = {...now.settings, [name]: name in RANGES ? RANGES[name](10 ** value) : value};
  if (name === "model" && value === "network") Object.assign(settings, {data: "roll", noise: 0.02});
  if (name === "data") settings.points = "";
  change(settings);
});
$("keep").onclick = () => { kept = now; change({...now.settings}); };
$("forget").onclick = () => { kept = null; write_address(); numbers(); };
addEventListener("hashchange", read_address);
for (const button of root.querySelectorAll("[data-question]")) {
  button.onclick = () => {
    location.hash = button.dataset.state;
    for (const answer of root.querySelectorAll("[data-answer]")) answer.hidden = answer.dataset.answer !== button.dataset.question;
    if (button.dataset.question === "condition") $("condition").scrollIntoView({behavior: still ? "auto" : "smooth"});
  };
}

/** The points as they are seen: when the pen is up, the data that they became. */
const drawn = () => now.start ? rows_of(now.ideal.points) : from_address(now.settings.points);
function put(point) {
  const rows = drawn();
  if (rows.length < MOST) now.settings.points = to_address([...rows, point]);
  [now.start, t, left.stale] = [null, 0, true];
}
left.canvas.addEventListener("pointerdown", event => {
  if (now.settings.data !== "draw") return;
  left.canvas.setPointerCapture(event.pointerId);
  put(pen = left.from(event));
});
left.canvas.addEventListener("pointermove", event => {
  for (const each of pen ? event.getCoalescedEvents() : []) {
    const point = left.from(each);
    if (Math.hypot(point[0] - pen[0], point[1] - pen[1]) > 0.05) put(pen = point);
  }
});
left.canvas.onlostpointercapture = () => { pen = null; change({...now.settings}); };
left.on_arrows(step => { [cursor, left.stale] = [cursor.map((value, i) => within(value + step[i])), true]; });
left.canvas.addEventListener("keydown", event => {
  if (now.settings.data !== "draw" || !["Enter", " ", "Backspace"].includes(event.key)) return;
  event.preventDefault();
  if (event.key === "Backspace") now.settings.points = to_address(drawn().slice(0, -1));
  else put(cursor);
  change({...now.settings});
});
left.canvas.onfocus = left.canvas.onblur = () => { left.stale = true; };

$("play").onclick = () => { [playing, rest] = [!playing, 0]; };
slider.oninput = () => { [playing, t, left.stale] = [false, Number(slider.value), true]; };
for (const key of ["density", "paths", "drift"]) $(`show-${key}`).onchange = () => { left.stale = true; };

function advance(seconds) {
  const {T} = now.settings;
  if ((rest -= seconds) > 0) return;
  t += direction * seconds * T / 5;
  if (t >= T) [t, direction, rest] = [T, -1, 1];
  if (t <= 0) [t, direction, rest] = [0, 1, 2];
}

/** Between two timesteps, the straight line. */
function between(frames) {
  const below = Math.floor(t), share = t - below, a = frames[below], b = frames[below + 1];
  return a && b ? a.map((value, i) => value + share * (b[i] - value)) : a || b;
}

/** make(now, t) for the timestep in sight, from the cache where it is there. */
function cached(make) {
  const step = Math.round(t), key = make.name + step;
  if (cache.size > 99) cache.clear();
  if (!cache.has(key)) cache.set(key, make(now, step));
  return cache.get(key);
}

function draw_planes() {
  const {settings: {data, T}, start, q, p, forward, reverse} = now;
  left.clear();
  right.clear();
  if (start && q && show("density")) left.context.drawImage(cached(density_image), 0, 0, left.size, left.size);
  const xt = start ? between(forward) : drawn().flat();
  if (xt) left.dots(xt, ALONG);
  if (data === "draw" && left.canvas.matches(":focus-visible")) left.cross(cursor);
  if (!start || !q || !p) return;
  if (show("drift")) {
    const muted = colour("muted"), arrows = cached(drift_field);
    for (const arrow of arrows) right.path(arrow, muted, 1.2);
    right.dots(arrows.flatMap(([from]) => from), [muted], 1.3);
  }
  const samples = between(reverse), stride = Math.max(1, Math.round(T / 80)), faint = colour("faint");
  for (let b = 0; b < 60 && reverse[0] && show("paths"); b += 2) {
    const path = [samples.slice(b, b + 2)];
    for (let s = Math.ceil(t); s <= T; s += stride) path.push(reverse[s].slice(b, b + 2));
    right.path(path, faint);
  }
  if (samples) right.dots(samples, [colour("accent")]);
}

function numbers() {
  root.classList.toggle("waiting", now.n < 3);
  if (now.n < 3) return;
  const shown = [now, kept].filter(e => e && e.n > 2), fill = (name, text) =>
    $(`row-${name}`).querySelectorAll("td").forEach((cell, k) => { cell.textContent = shown[k] ? text(shown[k]) : ""; });
  for (const key in now.sums) {
    fill(key, e => {
      const [mean, stderr] = e.row(key);
      return `${number(mean)} ± ${stderr.toFixed(3)}`;
    });
  }
  fill("ceiling", e => `${number(dpm.to_bits(e.ceiling))} (β₁ = ${short(e.beta[1])})`);
  const all_best = shown.every(e => e.settings.model === "diagonal");
  $("row-gap").hidden = all_best;
  $("row-K").firstElementChild.textContent = all_best ? "K*, what is left" : "K, what is left";
  root.classList.toggle("beside", shown.length > 1);
  $("label-now").textContent = label_of(now.settings);
  $("label-kept").textContent = kept ? label_of(kept.settings) : "";
  bars($("bars"), shown);
  const steps = shown.map(e => e.per_step());
  for (const key of ["restored", "lost"]) {
    chart($(key), steps.map(({x, [key]: y}, k) => ({x, y, kind: key + (k ? " kept" : "")})), "t = 2", "T", "bits per step");
  }
}

/** What is to be seen, in words. */
function describe() {
  const {settings: {data, T}, start, q} = now, step = Math.round(t), share = q ? q.alpha_bar[step] : 1, when = `at t = ${step} of ${T}`;
  left.canvas.ariaLabel = `Forward process ${when}: ${drawn().length} points, ${NAMES[data]}; ${Math.round(100 * share)} % of the signal is left.`;
  right.canvas.ariaLabel = `Samples of the reverse model ${when}: round noise at T, the shape of the data at 0.`;
  $("play").textContent = playing ? "❚❚" : "▶";
  $("play").ariaLabel = playing ? "pause" : "play";
  $("doing").textContent = start && !q ? "Seeking the best schedule, a shortest path…" : "";
}


/* Conditioning: the paper's product beside the exact posterior */

const PARTS = 20;
const condition = (() => {
  const controls = $("observation"), product = new Plane("product"), exact = new Plane("exact");
  let y = [0.6, 0.4], job = null, tally = null;

  function restart() {
    controls.s.nextElementSibling.value = short(10 ** controls.s.value);
    tally = {product: new Float64Array(PARTS), weighted: new Float64Array(PARTS), exact: new Float64Array(PARTS), n: 0};
    job = now.start ? run(now) : null;
    draw();
  }
  /** Samples of the product, weighted, and exact ones. */
  function* run(e) {
    while (!e.q || !e.p) yield e.work();
    const what = controls.what.value, variance = ["second", "first"].map(other => what === other ? Infinity : 10 ** (2 * controls.s.value));
    const r = new dpm.GaussianLikelihood(y, variance), g = new dpm.Generator(1), n = 200, {probs, law} = dpm.exact_posterior(e.ideal, r);
    const p = e.settings.model === "full" ? e.ideal : e.p;  // r multiplies one coordinate at a time
    const sums = Array.from(probs, (sum => prob => sum += prob)(0)), M = probs.length;
    tally.wanted = new Float64Array(PARTS);
    probs.forEach((prob, m) => tally.wanted[Math.floor(PARTS * m / M)] += prob);
    while (tally.n < 4000) {
      let x, log_weight;
      for ([, x, log_weight] of dpm.posterior_trajectory(p, e.q, r, n, g, dpm.r_schedules[controls.r_schedule.value])) yield;
      const from = Array.from(g.rand(n), u => Math.max(0, sums.findIndex(sum => u * sums[M - 1] <= sum))), noise = g.randn(2 * n);
      const truth = noise.map((eps, i) => law.mean[2 * from[i >> 1] + (i & 1)] + Math.sqrt(law.variance[i & 1]) * eps);
      if (!tally.n) [product.x, exact.x, tally.unit] = [x, truth, Math.max(...log_weight)];
      const weight = log_weight.map(value => Math.exp(value - tally.unit));
      part_of(e.ideal, x).forEach((part, b) => { tally.product[part] += 1; tally.weighted[part] += weight[b]; });
      part_of(e.ideal, truth).forEach(part => { tally.exact[part] += 1; });
      tally.squares = weight.reduce((sum, w) => sum + w * w, tally.squares || 0);
      tally.n += n;
      draw();
      yield;
    }
  }
  /** The total variation: the share of samples that would have to move to another part of the data. */
  function misplaced(counts) {
    const sum = counts.reduce((a, b) => a + b);
    return `<b>${Math.round(50 * counts.reduce((total, count, k) => total + Math.abs(count / sum - tally.wanted[k]), 0))} %</b>`;
  }
  function draw() {
    for (const plane of [product, exact]) {
      plane.clear();
      if (!now.start) continue;
      plane.dots(now.ideal.points, [colour("faint")], 1.2);
      if (tally.n) plane.dots(plane.x, [colour(plane === exact ? "exact" : "accent")]);
      const what = controls.what.value;
      if (what === "both") plane.cross(y);
      else plane.path(what === "first" ? [[y[0], -REACH], [y[0], REACH]] : [[-REACH, y[1]], [REACH, y[1]]], colour("ink"), 1.5);
    }
    const {n, product: counts, exact: chance, weighted, squares} = tally, worth = Math.round(weighted.reduce((a, b) => a + b) ** 2 / squares);
    $("verdict").innerHTML = n ? `Of ${n} samples of the product, ${misplaced(counts)} lie in the wrong part of the data; of as many exact samples,`
      + ` ${misplaced(chance)}, by chance. With the weights of (21) over (22), ${misplaced(weighted)}: weighted, they are worth ${worth} samples.` : "";
  }
  /** The part of the data, in the order of the pen, that is nearest to each sample. */
  const part_of = ({points}, x) => rows_of(x).map(([u, v]) => {
    let nearest = 0, least = Infinity;
    for (let m = 0; m < points.length; m += 2) {
      const squared = (u - points[m]) ** 2 + (v - points[m + 1]) ** 2;
      if (squared < least) [nearest, least] = [m, squared];
    }
    return Math.floor(PARTS * nearest / points.length);
  });
  const move = point => { y = point; restart(); };
  for (const plane of [product, exact]) {
    plane.canvas.onclick = event => move(plane.from(event));
    plane.on_arrows(step => move(y.map((value, i) => within(value + step[i]))));
  }
  controls.oninput = restart;
  return {restart, draw, planes: [product, exact], work: () => Boolean(job) && !job.next().done};
})();


/* Bits: the heartbeat */

const bits = (() => {
  const [PERIOD, SIZE, N] = [5, 4, 100], points = dpm.heartbeat_sequences(PERIOD * SIZE, PERIOD), truth = -Math.log2(PERIOD);
  const {kernel, T} = $("bits-settings").elements, slider = $("bits-t"), button = $("bits-play"), lengths = [...T.options].map(o => +o.value);
  const make = {
    flipping: T => new dpm.BernoulliForward(dpm.linear_alpha_bar(T), 1 / PERIOD),
    masking: T => new dpm.AbsorbingForward(dpm.linear_alpha_bar(T)),
  };
  const K = {flipping: {}, masking: {}}, cells = list(12 * PERIOD * SIZE, k =>
    add($("beats"), "rect", {x: 20 * (k % 20) + 1, y: 20 * Math.floor(k / 20) + 1, width: 18, height: 18, rx: 3, class: "zero"}));
  let q, states, job, running, t;

  function restart() {
    q = make[kernel.value](+T.value);
    [slider.max, t, states, running, job] = [q.T, q.T, [], !still, run()];
    draw();
  }
  /** Ancestral samples, then K* of this chain, then of all others. */
  function* run() {
    const g = new dpm.Generator(2), pick = probs => {
      const [u] = g.rand(1), k = probs.findIndex((sum => prob => (sum += prob) > u)(0));
      return k < 0 ? probs.length - 1 : k;
    };
    states[q.T] = list(N, () => points[0].map(() => pick(q.prior)));
    for (let t = q.T; t > 0; t--) {
      states[t - 1] = states[t].map(row => {
        const mean = dpm.predict_bits(points, q, row, t);
        return row.map((k, i) => pick(t > 1 ? q.posterior_from_moments(k, mean[i], t) : q.final_step(k, mean[i])));
      });
      yield;
    }
    for (const [name, T] of [[kernel.value, q.T], ...lengths.flatMap(T => [["flipping", T], ["masking", T]])]) {
      K[name][T] ??= dpm.to_bits(yield* dpm.enumerate_ideal_K(make[name](T), PERIOD, SIZE));
      draw();
    }
  }
  function draw() {
    const step = Math.round(t), value = k => q.states[k], name = kernel.value;
    slider.value = step;
    slider.nextElementSibling.value = `${step} of ${q.T}`;
    [button.textContent, button.ariaLabel] = running ? ["❚❚", "pause"] : ["▶", "play"];
    if (states[step]) cells.forEach((cell, k) =>
      cell.setAttribute("class", {0: "zero", 0.5: "mask", 1: "one"}[value(states[step][Math.floor(k / 20)][k % 20])]));
    const valid = (states[0] || []).filter(row => points.some(point => point.every((bit, i) => value(row[i]) === bit))).length;
    $("bits-verdict").innerHTML = (states[0] ? `<b>${valid} of ${N}</b> samples are heartbeats. ` : "") + (q.T in K[name]
      ? `K* = <b>${number(K[name][q.T])}</b> bits, exactly; the truth, −H(X⁰), is ${number(truth)}.` : "Counting every state…");
    chart($("K-of-T"), ["flipping", "masking"].map(kind => {
      const known = lengths.filter(T => T in K[kind]);
      return {x: known.map(T => Math.log(T / 2) / Math.log(100)), y: known.map(T => truth - K[kind][T]), kind};
    }), "T = 2", "T = 200", "bits below the truth");
  }
  $("bits-settings").oninput = restart;
  slider.oninput = () => { [running, t] = [false, +slider.value]; draw(); };
  button.onclick = () => { [running, t] = [!running, t || q.T]; draw(); };
  restart();
  return {
    work: () => !job.next().done,
    advance(seconds) {
      if (!running || !states[0]) return;
      t = Math.max(0, t - seconds * q.T / 4);
      running = t > 0;
      draw();
    },
  };
})();


/* The clock: a picture, then work until the next */

const seen = new Set(), watch = new IntersectionObserver(entries => {
  for (const {target, isIntersecting} of entries) seen[isIntersecting ? "add" : "delete"](target.dataset.lab);
});
for (const name of ["points", "condition", "bits"]) watch.observe($(name));

let before = 0, spoke = 0, pace = 1 / 60;
function frame(time) {
  const seconds = Math.min(0.1, (time - before) / 1000);
  before = time;
  pace += 0.05 * (seconds - pace);
  if (seen.has("points")) {
    if (playing && now.q) advance(seconds);
    if (playing || left.stale || right.stale || !now.drawn) draw_planes();
    [left.stale, right.stale, now.drawn] = [false, false, now.ready];
    slider.value = Math.round(t);
    slider.nextElementSibling.value = `${slider.value} of ${now.settings.T}`;
  }
  if (condition.planes.some(plane => plane.stale)) condition.draw();
  for (const plane of condition.planes) plane.stale = false;
  if (seen.has("bits")) bits.advance(seconds);
  const until = performance.now() + 9;
  let jobs = [[now, "points"], [kept, "points"], [condition, "condition"], [bits, "bits"]].filter(([job, place]) => job && seen.has(place));
  while (jobs.length && performance.now() < until) jobs = jobs.filter(([job]) => performance.now() > until || job.work());
  if (time - spoke > (still ? 1000 : 300)) {
    spoke = time;
    numbers();
    describe();
    $("pace").textContent = `${now.n * now.batch} draws; ${Math.round(1 / pace)} pictures a second`;
  }
  requestAnimationFrame(frame);
}
new MutationObserver(() => {
  cache.clear();
  left.stale = condition.planes[0].stale = true;
}).observe(document.documentElement, {attributes: true, attributeFilter: ["data-theme"]});
read_address();
requestAnimationFrame(frame);
});
