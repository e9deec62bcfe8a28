// How figures are written for people.
// @ts-check

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const DASH = "—";

/** @param {number} value */
export const count = (value) => whole.format(value);

/** @param {number | null} value @param {number} digits */
export const fixed = (value, digits) => (value === null ? DASH : value.toFixed(digits));

/** @param {number} part @param {number} all */
export const percent = (part, all) => (all > 0 ? `${Math.round((100 * part) / all)} %` : DASH);

/** How much faster, for people. @param {any} benefit */
export const statement = (benefit) => {
  if (!benefit.is_measured) return "Not measured: no sessions are held out here";
  const { ratio, low, high, num_drafted, num_holdouts, num_needed } = benefit;
  if (ratio === null)
    return num_holdouts < num_needed
      ? `Not enough data: ${num_holdouts} of ${num_needed} sessions without volunteers have ended`
      : num_drafted < num_needed
        ? `Not enough data: ${num_drafted} of ${num_needed} sessions with volunteers have ended`
        : "Not enough data: the sessions compared were too short";
  const detail = `(${low.toFixed(2)}–${high.toFixed(2)}, ${count(num_holdouts)} sessions compared)`;
  if (low > 1) return `Volunteers make it ${ratio.toFixed(2)}× faster ${detail}`;
  if (high < 1) return `Volunteers make it slower: ${ratio.toFixed(2)}× the speed ${detail}`;
  return `No clear difference yet: ${ratio.toFixed(2)}× the speed with volunteers ${detail}`;
};

/** @param {number | null} seconds */
export const milliseconds = (seconds) =>
  seconds === null ? DASH : `${(1000 * seconds).toFixed(seconds < 0.01 ? 1 : 0)} ms`;

/** @param {number} seconds */
export const ago = (seconds) => {
  const s = Math.floor(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
};

/** @param {number} unixSeconds */
export const time = (unixSeconds) =>
  new Date(1000 * unixSeconds).toLocaleTimeString("en-GB", { hour12: false });

/** The end of an id tells more than its start, which is the same for all peers. @param {string} full */
export const id = (full) => (full.length > 10 ? `…${full.slice(-8)}` : full);
