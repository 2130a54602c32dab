/** A file that is damaged, newer, too large, or no `.sec` file at all. */
export class SecError extends Error {
  /**
   * @param {string} what What is wrong.
   * @param {{ where?: string, expected?: unknown, found?: unknown }} [more]
   */
  constructor(what, { where, expected, found } = {}) {
    const parts = [what];
    if (where !== undefined) parts[0] = `${what} in ${where}`;
    if (expected !== undefined) parts.push(`expected ${expected}`);
    if (found !== undefined) parts.push(`found ${found}`);
    super(parts.join(": ").replace(": found", ", found"));
    this.name = "SecError";
  }
}
