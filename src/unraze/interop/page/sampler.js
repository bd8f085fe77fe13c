// The samplers of Unraze as in its Python (samplers/, schedule.py), in the notation of both:
//
//     x_t = ᾱ_t x_0 + β̄_t ε̄,   ᾱ_t = cos θ_t,   β̄_t = sin θ_t
//
// A state is a Float32Array of all images one after the other; all coefficients are doubles. A
// denoiser is a function (x, t, previous) -> Promise of {x0, eps}, previous being the last x̂_0 or
// null. A sampler is an asynchronous generator of
// {t, x, x0}: the state after each step, the time it stands at, and the estimate it came from.

/** ᾱ at its times: 0, 1, …, T where absent. */
export function scheduleOf(alphaBar, times = alphaBar.map((_, t) => t)) {
  const betaBar = alphaBar.map((a) => Math.sqrt((1 - a) * (1 + a)));
  const theta = alphaBar.map((a, t) => Math.atan2(betaBar[t], a));
  return { alphaBar, betaBar, theta, times };
}

/** θ at a training time: linear between the schedule's own. */
export function thetaAt(schedule, t) {
  const { times, theta } = schedule;
  let left = 0;
  while (left < times.length - 2 && times[left + 1] <= t) left++;
  const share = (t - times[left]) / (times[left + 1] - times[left]);
  return theta[left] + share * (theta[left + 1] - theta[left]);
}

/** The training time at which arctan(β̄/ᾱ) = θ. */
export function timeAt(schedule, theta) {
  const end = schedule.theta.length - 1;
  let right = 1;
  while (right < end && schedule.theta[right] < theta) right++;
  const share = (theta - schedule.theta[right - 1]) / (schedule.theta[right] - schedule.theta[right - 1]);
  return schedule.times[right - 1] + share * (schedule.times[right] - schedule.times[right - 1]);
}

/** The sub-schedule at these times, which rise from 0. */
export function keep(schedule, times) {
  const own = new Map(schedule.times.map((t, place) => [t, schedule.alphaBar[place]]));
  return scheduleOf(
    times.map((t) => (own.has(t) ? own.get(t) : Math.cos(thetaAt(schedule, t)))),
    times,
  );
}

/** Steps even in t; at whole times alone where `whole`. */
export function evenTimes(schedule, steps, whole = false) {
  const last = schedule.times.at(-1);
  const times = Array.from({ length: steps + 1 }, (_, k) => (k * last) / steps);
  return keep(schedule, whole ? times.map(evenRound) : times);
}

/** To the nearest whole number, halves to the even one, as Python rounds. */
function evenRound(t) {
  const near = Math.round(t);
  return Math.abs(t % 1) === 0.5 && near % 2 ? near - 1 : near;
}

/** Steps even in θ; at whole times alone where `whole`. */
export function evenAngles(schedule, steps, whole = false) {
  const last = schedule.theta.at(-1);
  return spaced(schedule, Array.from({ length: steps + 1 }, (_, k) => (k / steps) * last), whole);
}

/** Steps even in σ^(1/7), σ = β̄/ᾱ from 0.002 to min(σ_T, 80) (Karras et al. 2022, eq. 5). */
export function karras(schedule, steps, whole = false) {
  const top = Math.min(Math.tan(schedule.theta.at(-1)), 80);
  const [low, high] = [0.002, top > 0 ? top : 80].map((sigma) => sigma ** (1 / 7));
  const levels = Array.from({ length: steps }, (_, k) =>
    Math.atan((low + (steps > 1 ? k / (steps - 1) : 0) * (high - low)) ** 7),
  );
  return spaced(schedule, [0, ...levels.slice(0, -1), schedule.theta.at(-1)], whole);
}

function spaced(schedule, theta, whole) {
  let times = theta.map((angle) => timeAt(schedule, angle));
  times[0] = 0;
  times[times.length - 1] = schedule.times.at(-1);
  if (whole) {
    // the nearest whole times that still rise
    const room = times.at(-1) - (times.length - 1);
    let most = 0;
    times = times.map((t, place) => {
      most = Math.max(most, Math.min(Math.max(evenRound(t) - place, 0), room));
      return most + place;
    });
  }
  return keep(schedule, times);
}

/** Of values at 0, 1, 2, …, that at t, linear between them. */
export function between(values, t) {
  const low = Math.min(Math.floor(t), values.length - 1);
  const high = Math.min(low + 1, values.length - 1);
  return values[low] + (t - low) * (values[high] - values[low]);
}

/** {x0, eps} of what a network emits for x at a time where the signal is a and the noise b. */
export function predict(parametrisation, raw, x, a, b, { sigmaData = 1, stepRatio = 1 } = {}) {
  const x0 = new Float32Array(x.length);
  const eps = new Float32Array(x.length);
  const norm2 = b * b + a * a * sigmaData * sigmaData;
  const norm = Math.sqrt(norm2);
  for (let i = 0; i < x.length; i++) {
    switch (parametrisation) {
      case "eps":
      case "eps_step":
        eps[i] = raw[i] / (parametrisation === "eps_step" ? stepRatio : 1);
        x0[i] = (x[i] - b * eps[i]) / a;
        break;
      case "x0":
        x0[i] = raw[i];
        eps[i] = (x[i] - a * raw[i]) / b;
        break;
      case "v":
        x0[i] = a * x[i] - b * raw[i];
        eps[i] = b * x[i] + a * raw[i];
        break;
      case "edm":
        x0[i] = ((sigmaData * sigmaData * a) / norm2) * x[i] + ((sigmaData * b) / norm) * raw[i];
        eps[i] = (b / norm2) * x[i] - ((sigmaData * a) / norm) * raw[i];
        break;
      default:
        throw new Error(`parametrisation ${parametrisation}: is none of Unraze`);
    }
  }
  return { x0, eps };
}

/** x̂_0 within [-1, 1], and the noise that is then left in x. */
export function clipped({ x0 }, x, a, b) {
  const within = x0.map((value) => Math.min(1, Math.max(-1, value)));
  return { x0: within, eps: x.map((value, i) => (value - a * within[i]) / b) };
}

/** ε̂ = ε̂_∅ + w (ε̂_c - ε̂_∅), and the same for x̂_0. */
export function guided(withClass, without, scale) {
  const mix = (one, none) => one.map((value, i) => none[i] + scale * (value - none[i]));
  return { x0: mix(withClass.x0, without.x0), eps: mix(withClass.eps, without.eps) };
}

/** DDIM: x_s = ᾱ_s x̂_0 + β̄_s ε̂. */
export async function* ddim(denoise, x, schedule) {
  let previous = null;
  for (let t = schedule.times.length - 1; t > 0; t--) {
    const { x0, eps } = await denoise(x, schedule.times[t], previous);
    previous = x0;
    const [a, b] = [schedule.alphaBar[t - 1], schedule.betaBar[t - 1]];
    x = x0.map((value, i) => a * value + b * eps[i]);
    yield { t: schedule.times[t - 1], x, x0 };
  }
}

/** Adams's predictor and corrector with x̂_0 a polynomial in ᾱ (samplers/adams.py). */
export async function* adams(denoise, x, schedule, order = 2) {
  let nodes = [];
  let known = [];
  let before = x;
  for (let t = schedule.times.length - 1; t > 0; t--) {
    const { x0 } = await denoise(x, schedule.times[t], known[0] ?? null);
    nodes = [t, ...nodes.slice(0, order)];
    known = [x0, ...known.slice(0, order)];
    if (known.length > 1) {
      x = taken(schedule, before, t + 1, nodes.slice(0, t + 2), known.slice(0, t + 2));
    }
    const used = Math.min(order, known.length, t + 1);
    before = x;
    x = taken(schedule, before, t, nodes.slice(0, used), known.slice(0, used));
    yield { t: schedule.times[t - 1], x, x0 };
  }
}

/**
 * Consistency sampling (samplers/consistency.py): x_e = ᾱ_e x̂_0 + β̄_e ε̂ with e the highest border
 * below t, then noise up to the next time. `noise` is a function of the step.
 */
export async function* consistency(denoise, x, schedule, noise, borders) {
  const { times, alphaBar, betaBar } = schedule;
  for (let t = times.length - 1; t > 0; t--) {
    const border = Math.max(...borders.filter((time) => time < times[t]));
    const e = times.indexOf(border);
    const { x0, eps } = await denoise(x, times[t], null);
    x = x0.map((value, i) => alphaBar[e] * value + betaBar[e] * eps[i]);
    if (t - 1 > e) {
      const left = alphaBar[t - 1] / alphaBar[e];
      const added = Math.sqrt((1 - left) * (1 + left));
      const z = noise(t);
      x = x.map((value, i) => left * value + added * z[i]);
    }
    yield { t: times[t - 1], x, x0 };
  }
}

/** From x at step t to t-1 with the polynomial through the predictions at the nodes. */
function taken(schedule, x, t, nodes, known) {
  const kept = schedule.betaBar[t - 1] / schedule.betaBar[t];
  const weights = pictureWeights(schedule, t, nodes);
  const next = new Float32Array(x.length);
  for (let i = 0; i < x.length; i++) {
    let sum = kept * x[i];
    for (let j = 0; j < known.length; j++) sum += weights[j] * known[j][i];
    next[i] = sum;
  }
  return next;
}

/** w_j = β̄_s ∫ ℓ_j(ᾱ) d(ᾱ/β̄) from t to s = t-1, ℓ_j Lagrange's polynomials in ᾱ. */
export function pictureWeights(schedule, t, nodes) {
  const { alphaBar, betaBar, theta } = schedule;
  const at = nodes.map((n) => alphaBar[n]);
  const kept = betaBar[t - 1] / betaBar[t];
  const whole = alphaBar[t - 1] - kept * alphaBar[t];
  let where = [1];
  let shares = [1];
  if (t > 1) {
    const [low, high] = [theta[t - 1], theta[t]].map((angle) => Math.log(Math.tan(angle / 2)));
    const half = (high - low) / 2;
    const angles = POINTS.map((point) => 2 * Math.atan(Math.exp((high + low) / 2 + half * point)));
    where = angles.map(Math.cos);
    shares = angles.map((angle, i) => (betaBar[t - 1] * half * SHARES[i]) / Math.sin(angle));
  }
  const others = at.slice(1).map((_, k) => {
    const j = k + 1;
    return where.reduce((sum, a, i) => {
      let value = shares[i];
      at.forEach((node, m) => {
        if (m !== j) value *= (a - node) / (at[j] - node);
      });
      return sum + value;
    }, 0);
  });
  return [whole - others.reduce((sum, value) => sum + value, 0), ...others];
}

/** The 32 points and shares of Gauss and Legendre on [-1, 1], by Newton's method. */
function gaussLegendre(count) {
  const points = [];
  const shares = [];
  for (let k = 0; k < count; k++) {
    let x = -Math.cos((Math.PI * (k + 0.75)) / (count + 0.5));
    let slope = 0;
    for (let round = 0; round < 100; round++) {
      let [now, last] = [x, 1];
      for (let n = 2; n <= count; n++) [now, last] = [((2 * n - 1) * x * now - (n - 1) * last) / n, now];
      slope = (count * (x * now - last)) / (x * x - 1);
      const step = now / slope;
      x -= step;
      if (Math.abs(step) < 1e-16) break;
    }
    points.push(x);
    shares.push(2 / ((1 - x * x) * slope * slope));
  }
  return [points, shares];
}

const [POINTS, SHARES] = gaussLegendre(32);

/** Standard normal numbers of image `number` of a seed at a step: a function of these. */
export function normals(seed, number, count, step = 0) {
  const uniform = stream(seed, number, step);
  const out = new Float32Array(count);
  for (let i = 0; i < count; i += 2) {
    // Box and Muller
    const radius = Math.sqrt(-2 * Math.log(1 - uniform()));
    const angle = 2 * Math.PI * uniform();
    out[i] = radius * Math.cos(angle);
    if (i + 1 < count) out[i + 1] = radius * Math.sin(angle);
  }
  return out;
}

/** Uniform numbers in [0, 1): sfc32, Chris Doty-Humphrey's, begun with seed, number and step. */
export function stream(seed, number, step = 0) {
  let [a, b, c, counter] = [seed >>> 0, number >>> 0, (0x9e3779b9 + step) >>> 0, 1];
  const next = () => {
    const sum = (((a + b) >>> 0) + counter) >>> 0;
    counter = (counter + 1) >>> 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) >>> 0;
    c = (((c << 21) | (c >>> 11)) + sum) >>> 0;
    return sum;
  };
  for (let round = 0; round < 20; round++) next();
  return () => (next() * 2 ** 21 + (next() >>> 11)) / 2 ** 53;
}

/** The class that image `number` of a seed is of: clusters as often as in the training images. */
export function classOf(about, number, seed) {
  if (!about.shares) return number % about.num_classes;
  const place = (stream(seed, 0xffffffff)() + number * 0.6180339887498949) % 1;
  let sum = 0;
  const found = about.shares.findIndex((share) => (sum += share) > place);
  return found < 0 ? about.num_classes - 1 : found;
}
