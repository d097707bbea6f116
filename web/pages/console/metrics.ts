/** Prometheus' text format, as far as the gateway writes it. */

export interface Sample {
  labels: Record<string, string>;
  value: number;
}

export type Metrics = Map<string, Sample[]>;

export function parse(text: string): Metrics {
  const found: Metrics = new Map();
  for (const line of text.split("\n")) {
    const match = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/.exec(line);
    if (match === null) continue;
    const [, name = "", inner = "", value = ""] = match;
    const labels: Record<string, string> = {};
    for (const [, label = "", content = ""] of inner.matchAll(/([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g)) {
      labels[label] = content.replace(/\\(.)/g, (_, char: string) => (char === "n" ? "\n" : char));
    }
    const samples = found.get(name) ?? [];
    samples.push({ labels, value: Number(value) });
    found.set(name, samples);
  }
  return found;
}

/** The sum of a metric's samples, of those whose labels fit. */
export function total(metrics: Metrics, name: string, labels: Record<string, string> = {}): number {
  const fits = (sample: Sample) => Object.entries(labels).every(([label, value]) => sample.labels[label] === value);
  return (metrics.get(name) ?? []).filter(fits).reduce((sum, sample) => sum + sample.value, 0);
}
