/* The mathematics of the laboratory: what its page needs of the Python module `dpm`, under the same names.
   Points of the plane are Float64Arrays [B, 2], row after row. Slot t of a table is the paper's t; slot 0 is "no noise". */
const dpm = (() => {
"use strict";

const LOG_2PI = Math.log(2 * Math.PI);
const sigmoid = x => 1 / (1 + Math.exp(-x));
const list = (n, value) => Array.from({length: n}, (_, k) => value(k));
const floats = (n, value) => Float64Array.from({length: n}, (_, k) => value(k));
const to_bits = nats => nats / Math.LN2;
const at = (variance, i) => typeof variance === "number" ? variance : variance[i];  // a number broadcasts

/** A seeded generator, sfc32. */
class Generator {
  constructor(seed) {
    [this.a, this.b, this.c, this.d] = [seed | 0, 0x9e3779b9, 0x243f6a88, 1];
    for (let k = 0; k < 16; k++) this.next();
  }
  next() {
    const sum = (this.a + this.b + this.d) | 0;
    this.d = (this.d + 1) | 0;
    this.a = this.b ^ (this.b >>> 9);
    this.b = (this.c + (this.c << 3)) | 0;
    this.c = ((this.c << 21) | (this.c >>> 11)) + sum | 0;
    return sum >>> 0;
  }
  rand(n) {
    return floats(n, () => (this.next() + 0.5) / 4294967296);
  }
  randn(n) {
    const values = new Float64Array(n);
    for (let i = 0; i < n; i += 2) {  // Box and Muller; what is written beyond the end is lost
      const [u, v] = this.rand(2), radius = Math.sqrt(-2 * Math.log(u));
      values[i] = radius * Math.cos(2 * Math.PI * v);
      values[i + 1] = radius * Math.sin(2 * Math.PI * v);
    }
    return values;
  }
}


/* schedules.py: β_1…T, Section 2.4.1 */

/** β_t = 1/(T−t+1), so that ᾱ_t = 1 − t/T. */
function linear_alpha_bar(T) {
  return floats(T + 1, t => t && 1 / (T - t + 1));
}

/** log ᾱ_t/(1−ᾱ_t) falls linearly in t, from that of β_1 to that of the last noise variance. */
function log_snr_linear(T, beta_1, last = 0.995) {
  const logit = p => Math.log(p / (1 - p)), step = (logit(last) - logit(beta_1)) / (T - 1);
  return beta_from_alpha_bar(floats(T, k => sigmoid(-logit(beta_1) - k * step)));
}

/** Ho et al. 2020: β_t rises linearly from 0.1/T to 20/T. */
function linear_beta(T) {
  return floats(T + 1, t => t && (0.1 + 19.9 * (t - 1) / (T - 1)) / T);
}

/** Nichol and Dhariwal 2021: ᾱ_t falls as cos² of an angle linear in t. */
function cosine_alpha_bar(T) {
  const squared = t => t < T ? Math.cos((t / T + 0.008) / 1.008 * Math.PI / 2) ** 2 : 0;
  return beta_from_alpha_bar(floats(T, k => squared(k + 1) / squared(0)));
}

/** β_t = 1 − ᾱ_t/ᾱ_{t−1}: [T] → [T+1]. */
function beta_from_alpha_bar(alpha_bar) {
  const previous = t => t > 1 ? alpha_bar[t - 2] : 1;
  return floats(alpha_bar.length + 1, t => t && (previous(t) - alpha_bar[t - 1]) / previous(t));
}

/** log ᾱ_t = Σ_{s≤t} log(1−β_s), [T+1]. */
function log_alpha_bar(beta) {
  let sum = 0;
  return beta.map(beta_t => sum += Math.log1p(-beta_t));
}

/** The cheapest paths of n_steps steps from node 0 to every node; loss[j][k] is the cost from j to a later k. */
function shortest_paths(loss, n_steps) {
  const G = loss.length;
  let cost = new Float64Array(G).fill(Infinity), path = list(G, k => [k]);
  cost[0] = 0;
  for (let step = 0; step < n_steps; step++) {
    const best = new Float64Array(G).fill(Infinity), previous = new Int32Array(G);
    for (let j = 0; j < G; j++) {
      if (cost[j] === Infinity) continue;
      for (let k = j + 1; k < G; k++) {
        if (cost[j] + loss[j][k] < best[k]) [best[k], previous[k]] = [cost[j] + loss[j][k], j];
      }
    }
    path = path.map((_, k) => [...path[previous[k]], k]);
    cost = best;
  }
  return [cost, path];
}


/* distributions.py */

/** N(x; mean, Σ): mean [B, 2]; variance a number or [B, 2]; covariance [B], what a full Σ has beside its diagonal. */
class Normal {
  constructor(mean, variance, covariance = null) {
    Object.assign(this, {mean, variance, covariance});
  }
  reparameterize(noise) {
    const x = new Float64Array(noise.length);
    for (let i = 0; i < x.length; i += 2) {
      const [v, w, c] = this.covariance_of(i >> 1), scale = Math.sqrt(v), slope = scale && c / scale;  // Cholesky
      x[i] = this.mean[i] + scale * noise[i];
      x[i + 1] = this.mean[i + 1] + slope * noise[i] + Math.sqrt(w - slope * slope) * noise[i + 1];
    }
    return x;
  }
  /** −E log other(x) over x from this distribution, nats, [B]. */
  cross_entropy(other) {
    return floats(this.mean.length / 2, b => {
      const [v, w, c] = this.covariance_of(b), [V, W, C] = other.covariance_of(b), det = V * W - C * C;
      const [dx, dy] = [0, 1].map(i => this.mean[2 * b + i] - other.mean[2 * b + i]);
      return LOG_2PI + 0.5 * (Math.log(det) + (W * (v + dx * dx) - 2 * C * (c + dx * dy) + V * (w + dy * dy)) / det);
    });
  }
  /** Σ of sample b: both variances, and the number beside them. */
  covariance_of(b) {
    return [at(this.variance, 2 * b), at(this.variance, 2 * b + 1), this.covariance ? this.covariance[b] : 0];
  }
}

/** Sum over both coordinates: [B, 2] → [B]. */
function sum_except_batch(values) {
  return floats(values.length / 2, b => values[2 * b] + values[2 * b + 1]);
}


/* forward/: the forward processes, Table App.1 */

class ForwardProcess {
  constructor(beta) {
    this.beta = beta;
    this.T = beta.length - 1;
    this.log_alpha_bar = log_alpha_bar(beta);
    this.alpha_bar = this.log_alpha_bar.map(Math.exp);
    this.noise_variance = this.log_alpha_bar.map(value => -Math.expm1(value));  // 1 − ᾱ_t
  }
}

/** q(x^t|x^{t−1}) = N(x^{t−1} √(1−β_t), β_t I), with prior π = N(0, I). */
class GaussianForward extends ForwardProcess {
  constructor(beta) {
    super(beta);
    const table = weight => beta.map((beta_t, t) => t && weight(beta_t, t));
    const noise = this.noise_variance;
    this.log_snr = this.log_alpha_bar.map((value, t) => value - Math.log(noise[t]));
    this.posterior_coefficients = {  // of q(x^{t−1}|x^t,x⁰)
      x0: table((beta_t, t) => Math.sqrt(this.alpha_bar[t - 1]) * beta_t / noise[t]),
      xt: table((beta_t, t) => Math.sqrt(1 - beta_t) * noise[t - 1] / noise[t]),
      variance: table((beta_t, t) => beta_t * noise[t - 1] / noise[t]),
    };
  }
  transition(x, t) {
    const kept = Math.sqrt(1 - this.beta[t]);
    return new Normal(x.map(value => kept * value), this.beta[t]);
  }
  marginal(x0, t) {
    const kept = Math.sqrt(this.alpha_bar[t]);
    return new Normal(x0.map(value => kept * value), this.noise_variance[t]);
  }
  /** q(x^{t−1} | x^t, x⁰), (47)-(48). */
  posterior(xt, x0, t) {
    return this.posterior_from_moments(xt, {mean: x0, variance: 0}, t);
  }
  /** The Gaussian nearest in KL to q(x^{t−1} | x^t), given moments of x⁰ | x^t. */
  posterior_from_moments(xt, {mean, variance, covariance}, t) {
    const {x0, xt: weight, variance: own} = this.posterior_coefficients, [a, b, v] = [x0[t], weight[t], own[t]];
    return new Normal(xt.map((value, i) => a * mean[i] + b * value), variance ? variance.map(w => v + a * a * w) : v,
      covariance ? covariance.map(w => a * a * w) : null);
  }
  /** H_q(X^T|X⁰), H_q(X¹|X⁰) and H_p(X^T) of (14). */
  entropy_constants() {
    return [this.noise_variance[this.T], this.noise_variance[1], 1].map(v => 1 + LOG_2PI + Math.log(v));
  }
}

/** Each bit is drawn anew from the prior with probability β_t. A law is of one bit: the probabilities of its states. */
class BernoulliForward extends ForwardProcess {
  states = [0, 1];
  reversible = true;
  constructor(beta, prior_prob = 0.5) {
    super(beta);
    this.prior = [1 - prior_prob, prior_prob];
  }
  redrawn(bit, kept, redrawn) {
    return this.prior.map((prob, k) => (k === bit) * kept + redrawn * prob);
  }
  transition(bit, t) {
    return this.redrawn(bit, 1 - this.beta[t], this.beta[t]);
  }
  marginal(bit, t) {
    return this.redrawn(bit, this.alpha_bar[t], this.noise_variance[t]);
  }
  /** The law nearest in KL to q(x^{t−1} | x^t = states[k]), given P(x⁰ = 1 | x^t) = mean. */
  posterior_from_moments(k, mean, t) {
    const law = [0, 0];
    for (const bit of [0, 1]) {
      const joint = this.marginal(bit, t - 1).map((prob, s) => prob * this.transition(s, t)[k]);
      for (const s of [0, 1]) law[s] += (bit ? mean : 1 - mean) * joint[s] / (joint[0] + joint[1]);
    }
    return law;
  }
  /** H_q(X^t|X^{t−1}) given x⁰. */
  transition_entropy(bit, t) {
    const [zero, one] = [0, 1].map(value => entropy(this.transition(value, t)));
    return zero + (one - zero) * this.marginal(bit, t - 1)[1];
  }
  /** p(x⁰|x¹): the edge step (44). */
  final_step(k) {
    return this.transition(k, 1);
  }
}

/** Each bit is masked with probability β_t, for good. */
class AbsorbingForward extends ForwardProcess {
  states = [0, 0.5, 1];
  reversible = false;
  prior = [0, 1, 0];
  transition(bit, t) {
    return [(1 - this.beta[t]) * (bit === 0), this.beta[t], (1 - this.beta[t]) * (bit === 1)];
  }
  marginal(bit, t) {
    return [this.alpha_bar[t] * (bit === 0), this.noise_variance[t], this.alpha_bar[t] * (bit === 1)];
  }
  posterior_from_moments(k, mean, t) {
    if (k !== 1) return [+(k === 0), 0, +(k === 2)];
    const stays = this.noise_variance[t - 1] / this.noise_variance[t];
    return [(1 - stays) * (1 - mean), stays, (1 - stays) * mean];
  }
  transition_entropy(bit, t) {
    return entropy(this.transition(bit, t)) * this.alpha_bar[t - 1];
  }
  final_step(k, mean) {
    return this.posterior_from_moments(k, mean, 1);
  }
}

/** −Σ p log p, nats. */
function entropy(probs) {
  return probs.reduce((sum, prob) => prob > 0 ? sum - prob * Math.log(prob) : sum, 0);
}


/* ideal.py: ideal reverse models */

/** The ideal reverse model of x⁰ = one of `points` [M, 2] + N(0, variance · I): f_μ* and diagonal f_Σ*. */
class IdealMixtureReverse {
  constructor(points, variance) {
    Object.assign(this, {points, variance});
    this.squares = sum_except_batch(points.map(value => value * value));
    this.logits = new Float64Array(this.squares.length);
  }
  /** Moments of x⁰ | x^t: mean and variance [B, 2], covariance [B]; and log q(x^t), [B], from the same sum. */
  predict_x0(q, xt, t) {
    const {points, squares, logits} = this, M = logits.length, B = xt.length / 2;
    const root = Math.sqrt(q.alpha_bar[t]), total = q.alpha_bar[t] * this.variance + q.noise_variance[t];
    const gain = root * this.variance / total, weight = 1 - root * gain;
    const own = this.variance * q.noise_variance[t] / total;  // Var(x⁰ | x^t, point)
    const mean = new Float64Array(2 * B), variance = new Float64Array(2 * B);
    const covariance = new Float64Array(B), log_density = new Float64Array(B);
    for (let b = 0; b < B; b++) {
      const x = xt[2 * b], y = xt[2 * b + 1];
      const [a, c, half] = [root * x / total, root * y / total, q.alpha_bar[t] / (2 * total)];
      let largest = -Infinity;
      for (let m = 0; m < M; m++) {
        const logit = a * points[2 * m] + c * points[2 * m + 1] - half * squares[m];
        logits[m] = logit;
        if (logit > largest) largest = logit;
      }
      let [sum, sx, sy, sxx, sxy, syy] = [0, 0, 0, 0, 0, 0];
      for (let m = 0; m < M; m++) {
        if (logits[m] < largest - 45) continue;  // below a float64's last digit
        const w = Math.exp(logits[m] - largest), px = points[2 * m], py = points[2 * m + 1];
        sum += w; sx += w * px; sy += w * py; sxx += w * px * px; sxy += w * px * py; syy += w * py * py;
      }
      sx /= sum; sy /= sum;
      mean[2 * b] = weight * sx + gain * x;
      mean[2 * b + 1] = weight * sy + gain * y;
      variance[2 * b] = weight * weight * (sxx / sum - sx * sx) + own;
      variance[2 * b + 1] = weight * weight * (syy / sum - sy * sy) + own;
      covariance[b] = weight * weight * (sxy / sum - sx * sy);
      log_density[b] = largest + Math.log(sum / M) - (x * x + y * y) / (2 * total) - LOG_2PI - Math.log(total);
    }
    return {mean, variance, covariance, log_density};
  }
  /** p(x^{t−1}|x^t), from the moments of x⁰. */
  law(q, xt, t, {mean, variance}) {
    return q.posterior_from_moments(xt, {mean, variance}, t);
  }
  /** log q(x⁰), nats, [B]. */
  log_prob(x0) {
    return this.predict_x0(NO_NOISE, x0, 0).log_density;
  }
}

const NO_NOISE = {alpha_bar: [1], noise_variance: [0]};  // what a forward process is at t = 0

/** f_μ* with the full covariance Σ*. */
class IdealFullCovarianceReverse extends IdealMixtureReverse {
  law(q, xt, t, moments) {
    return q.posterior_from_moments(xt, moments, t);
  }
}

/** f_μ* with a variance that knows no data: `variance_of(q, t)` is β_t or β̃_t, as in Ho et al. 2020. */
class IdealMeanReverse extends IdealMixtureReverse {
  constructor(points, variance, variance_of) {
    super(points, variance);
    this.variance_of = variance_of;
  }
  law(q, xt, t, {mean}) {
    return new Normal(q.posterior(xt, mean, t).mean, this.variance_of(q, t));
  }
}

/** KL( q(x^{t−1}|x^t,x⁰) ‖ law ) averaged over q(x⁰|x^t), of which the ideal model has the moments: nats, [B]. */
function mean_step_kl(q, xt, t, moments, law) {
  const posterior_entropy = 1 + LOG_2PI + Math.log(q.posterior_coefficients.variance[t]);
  return q.posterior_from_moments(xt, moments, t).cross_entropy(law).map(value => value - posterior_entropy);
}

/** K* by (14) on x⁰ drawn as the data, [B]: each KL averaged over q(x⁰|x^t). */
function ideal_K(p, q, x0, generator) {
  const [at_T, at_1, prior] = q.entropy_constants(), K = new Float64Array(x0.length / 2).fill(at_T - at_1 - prior);
  for (let t = 2; t <= q.T; t++) {
    const xt = q.marginal(x0, t).reparameterize(generator.randn(x0.length)), moments = p.predict_x0(q, xt, t);
    mean_step_kl(q, xt, t, moments, p.law(q, xt, t, moments)).forEach((kl, b) => K[b] -= kl);
  }
  return K;
}

/** The β whose K* is the highest, by a shortest path. It yields after each noise level, so that a page stays alive. */
function* best_schedule(p, T, beta_1, x0, generator, n_levels = 300) {
  const first = Math.log(1 / beta_1 - 1), B = x0.length / 2;
  const log_snr = floats(n_levels, k => first + (-7 - first) * k / (n_levels - 1));
  const alpha_bar = log_snr.map(sigmoid), snr = log_snr.map(Math.exp), q = new GaussianForward(beta_from_alpha_bar(alpha_bar));
  const frozen = generator.randn(x0.length);  // the same for all levels, or the path would seek out lucky draws
  const loss = list(n_levels, () => new Float64Array(n_levels).fill(Infinity));
  for (let k = 1; k < n_levels; k++) {
    const {variance} = p.predict_x0(q, q.marginal(x0, k + 1).reparameterize(frozen), k + 1);
    for (let j = 0; j < k; j++) {
      let sum = 0;
      for (let i = 0; i < variance.length; i += 2) {
        sum += Math.log((1 + (snr[j] - snr[k]) * variance[i]) * (1 + (snr[j] - snr[k]) * variance[i + 1]));
      }
      loss[j][k] = sum / (2 * B);
    }
    yield k;
  }
  const [cost, path] = shortest_paths(loss, T - 1);
  const total = cost.map((value, k) => value - Math.log(sigmoid(-log_snr[k])));  // less H_q(X^T|X⁰) of (14)
  const cheapest = total.indexOf(Math.min(...total));
  return beta_from_alpha_bar(Float64Array.from(path[cheapest], k => alpha_bar[k]));
}

/** The data of an ideal reverse model, [n, 2]: points, and noise around them. */
function draw(p, n, generator) {
  const M = p.points.length / 2, picked = generator.rand(n), noise = generator.randn(2 * n);
  return noise.map((eps, i) => p.points[2 * Math.floor(picked[i >> 1] * M) + (i & 1)] + Math.sqrt(p.variance) * eps);
}


/* reverse.py, networks/denoisers.py */

/** p(x^{t−1}|x^t), at t = 1 the edge step (44). */
function reverse_step(p, q, xt, t) {
  return t === 1 ? q.transition(xt, 1) : p.law(q, xt, t, p.predict_x0(q, xt, t));
}

/** Equations (4) and (5): yields [t, x^t] from t = T down to 0, for n samples. */
function* sample_trajectory(p, q, n, generator) {
  let xt = generator.randn(2 * n);
  yield [q.T, xt];
  for (let t = q.T; t > 0; t--) {
    xt = reverse_step(p, q, xt, t).reparameterize(generator.randn(xt.length));
    yield [t - 1, xt];
  }
}

/** The moments of x⁰ | x^t by a network that predicts v = √ᾱ ε − √(1−ᾱ) x⁰ and a log variance. */
class VPrediction {
  constructor(network) {
    this.network = network;
  }
  predict_x0(q, xt, t) {
    const root = Math.sqrt(q.alpha_bar[t]), noise = q.noise_variance[t], log_snr = Math.max(q.log_snr[t], -99);
    const mean = new Float64Array(xt.length), variance = new Float64Array(xt.length);
    for (let i = 0; i < xt.length; i += 2) {
      const output = this.network(xt[i], xt[i + 1], log_snr);
      for (const k of [0, 1]) {
        mean[i + k] = root * xt[i + k] - Math.sqrt(noise) * output[k];
        variance[i + k] = noise * Math.exp(output[2 + k]);
      }
    }
    return {mean, variance};
  }
  law(q, xt, t, moments) {
    return q.posterior_from_moments(xt, moments, t);
  }
}

/** SiLU layers [{weight, bias}] on x, its log-SNR and Fourier features of x. */
function FourierMLP(layers, n_frequencies) {
  return (x, y, log_snr) => {
    let h = [x, y, log_snr / 4];
    for (let k = 0; k < n_frequencies; k++) {
      const [u, v] = [1.5 * 2 ** k * x, 1.5 * 2 ** k * y];
      h.push(Math.sin(u), Math.sin(v), Math.cos(u), Math.cos(v));
    }
    layers.forEach(({weight, bias}, layer) => {
      const out = new Float64Array(bias.length);
      for (let j = 0, w = 0; j < out.length; j++) {
        let sum = bias[j];
        for (let i = 0; i < h.length; i++) sum += weight[w++] * h[i];
        out[j] = layer < layers.length - 1 ? sum * sigmoid(sum) : sum;
      }
      h = out;
    });
    return h;
  };
}

/** Numbers of a base64 string of float16. */
function from_float16(text) {
  const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0)), half = new Uint16Array(bytes.buffer);
  return Float64Array.from(half, bits => {
    const [exponent, fraction] = [(bits >> 10) & 31, bits & 1023];
    const size = exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction;
    return bits >> 15 ? -size : size;
  });
}

/* posterior.py: the model times a second distribution */

/** r(x) = N(y; x, variance), y and variance [2]; a missing coordinate has variance ∞. */
class GaussianLikelihood {
  constructor(y, variance) {
    Object.assign(this, {y, variance});
  }
  log_prob(x) {
    return this.log_prob_of_y(x, 0);
  }
  /** log N(y; mean, variance + r's own), [B]. */
  log_prob_of_y(mean, variance) {
    return sum_except_batch(mean.map((value, i) => {
      const total = this.variance[i & 1] + at(variance, i);
      return total === Infinity ? 0 : -0.5 * ((this.y[i & 1] - value) ** 2 / total + Math.log(total) + LOG_2PI);
    }));
  }
  /** p̃ ∝ p · r, (22), for a law with a diagonal Σ. */
  multiply(law) {
    const gain = law.mean.map((_, i) => at(law.variance, i) / (at(law.variance, i) + this.variance[i & 1]));
    return new Normal(law.mean.map((value, i) => (1 - gain[i]) * value + gain[i] * this.y[i & 1]),
      gain.map((g, i) => (1 - g) * at(law.variance, i)));
  }
  /** log Z̃ of (22), [B]. */
  log_normalizer(law) {
    return this.log_prob_of_y(law.mean, law.variance);
  }
}

/** What stands for r at timestep t. */
const r_schedules = {
  constant: r => r,
  annealed: (r, q, t) => new GaussianLikelihood(r.y, r.variance.map(v => t < q.T ? v / (1 - t / q.T) : Infinity)),
  diffused(r, q, t) {
    const alpha_bar = q.alpha_bar[t];
    return new GaussianLikelihood(r.y.map(y => alpha_bar ? y / Math.sqrt(alpha_bar) : 0),
      r.variance.map(v => (v + q.noise_variance[t]) / alpha_bar));
  },
};

/** Sampling by the perturbed kernels (22): yields [t, x^t, log weight [n]] from t = T down to 0. */
function* posterior_trajectory(p, q, r, n, generator, r_schedule = r_schedules.constant) {
  let law = new Normal(new Float64Array(2 * n), 1), previous_log_r = new Float64Array(n);
  const log_weight = new Float64Array(n);
  for (let t = q.T; t >= 0; t--) {
    const r_t = r_schedule(r, q, t), x = r_t.multiply(law).reparameterize(generator.randn(2 * n));
    const log_Z = r_t.log_normalizer(law);
    for (let b = 0; b < n; b++) log_weight[b] += log_Z[b] - previous_log_r[b];
    yield [t, x, log_weight];
    if (t > 0) [law, previous_log_r] = [reverse_step(p, q, x, t), r_t.log_prob(x)];
  }
}

/** q(x⁰) r(x⁰), normalised: the probability of each point of an ideal reverse model, and the law around it. */
function exact_posterior(p, r) {
  const within = new Normal(p.points, p.variance), log_weight = r.log_normalizer(within);
  const largest = Math.max(...log_weight), weights = log_weight.map(value => Math.exp(value - largest));
  const sum = weights.reduce((a, b) => a + b);
  return {probs: weights.map(w => w / sum), law: r.multiply(within)};
}


/* data/synthetic.py, and bits in ideal.py */

/** Evenly spaced points of the swiss roll's curve, D.1.1: [n, 2]. */
function swiss_roll_points(n, noise = 0.02) {
  const [a, b] = [1.5 * Math.PI, 4.5 * Math.PI], {sin, cos} = Math;
  const mean = [(b * sin(b) + cos(b) - a * sin(a) - cos(a)) / (b - a), (sin(b) - b * cos(b) - sin(a) + a * cos(a)) / (b - a)];
  const scale = Math.sqrt(((b ** 3 - a ** 3) / 3 / (b - a) - mean[0] ** 2 - mean[1] ** 2) / 2);
  return floats(2 * n, i => {
    const theta = a * (1 + 2 * ((i >> 1) + 0.5) / n);
    return Math.sqrt(1 - noise * noise) * (theta * (i & 1 ? sin(theta) : cos(theta)) - mean[i & 1]) / scale;
  });
}

/** All heartbeats: [period][length]. */
function heartbeat_sequences(length = 20, period = 5) {
  return list(period, phase => Array.from({length}, (_, i) => +(i % period === phase)));
}

/** P(x⁰_i = 1 | x^t) of each bit of one sequence, which holds indices of states, for x⁰ uniform over points [M][L]. */
function predict_bits(points, q, xt, t) {
  const laws = [q.marginal(0, t), q.marginal(1, t)];
  const joint = points.map(point => point.reduce((prob, bit, i) => prob * laws[bit][xt[i]], 1));
  const sum = joint.reduce((a, b) => a + b);
  return xt.map((_, i) => sum && points.reduce((mean, point, m) => mean + point[i] * joint[m], 0) / sum);
}

/** All lists of k counts that add up to n. */
function compositions(n, k) {
  if (k === 1) return [[n]];
  return list(n + 1, first => compositions(n - first, k - 1).map(rest => [first, ...rest])).flat();
}

/** All ascending lists of `size` of the numbers first…n−1. */
function multisets(n, size, first = 0) {
  if (size === 0) return [[]];
  return list(n - first, k => multisets(n, size - 1, first + k).map(rest => [first + k, ...rest])).flat();
}

/** The states of a heartbeat's x^t, up to the order of phases and of the bits of a phase: how many bits of each phase
    are in which state, and the log of how many states an entry stands for. */
function enumerate_counts(period, size, n_states) {
  const log_factorial = n => n < 2 ? 0 : Math.log(n) + log_factorial(n - 1);
  const counts = compositions(size, n_states), states = multisets(counts.length, period);
  const log_multiplicity = states.map(groups => {
    let log = log_factorial(period) + period * log_factorial(size);
    for (const g of groups) for (const n of counts[g]) log -= log_factorial(n);
    for (const g of new Set(groups)) log -= log_factorial(groups.filter(other => other === g).length);
    return log;
  });
  return {counts, states, log_multiplicity};
}

/** K* of a heartbeat of period · size bits, exactly, by enumeration of every state of x^t. It yields after each t. */
function* enumerate_ideal_K(q, period, size) {
  const {counts, states, log_multiplicity} = enumerate_counts(period, size, q.states.length);
  const bits = [[0, size * (period - 1)], [1, size]];  // how many of them a sequence has
  const mean_over_bits = value => bits.reduce((sum, [bit, n]) => sum + n * value(bit), 0);
  const H = (bit, t) => t ? entropy(q.marginal(bit, t)) : 0;
  let total = 0;
  if (q.reversible) total = mean_over_bits(bit => H(bit, q.T) - H(bit, 1) - entropy(q.prior));
  for (let t = q.reversible ? 2 : 1; t <= q.T; t++) {
    total += mean_over_bits(bit => q.transition_entropy(bit, t) + H(bit, t - 1) - H(bit, t));
    const [of_zeros, of_ones] = [0, 1].map(bit => counts.map(count => {
      const law = q.marginal(bit, t);
      return count.reduce((log, n, k) => n ? log + n * Math.log(law[k]) : log, 0);
    }));
    states.forEach((groups, s) => {
      const log_joint = groups.map((_, m) => groups.reduce((log, g, k) => log + (k === m ? of_ones : of_zeros)[g], 0));
      const largest = Math.max(...log_joint);
      if (largest === -Infinity) return;
      const joint = log_joint.map(value => Math.exp(value - largest)), sum = joint.reduce((a, b) => a + b);
      const prob = Math.exp(largest + log_multiplicity[s]) * sum / period;
      groups.forEach((g, m) => counts[g].forEach((n, k) => {
        if (n) total -= prob * n * entropy(q.posterior_from_moments(k, joint[m] / sum, t));
      }));
    });
    yield t;
  }
  return total;
}

return {
  list, to_bits, Generator, linear_alpha_bar, log_snr_linear, linear_beta, cosine_alpha_bar, GaussianForward, BernoulliForward,
  AbsorbingForward, IdealMixtureReverse, IdealFullCovarianceReverse, IdealMeanReverse, mean_step_kl, ideal_K, best_schedule, draw,
  reverse_step, sample_trajectory, VPrediction, FourierMLP, from_float16, GaussianLikelihood, r_schedules, posterior_trajectory,
  exact_posterior, swiss_roll_points, heartbeat_sequences, predict_bits, enumerate_ideal_K,
};
})();
