"use client";

import { useEffect, useId, useRef, useState } from "react";

export interface Bar {
  /** Unique among the bars. */
  key: string;
  label: string;
  value: number;
  /** The value as people read it. */
  text: string;
}

export interface BarChartProps {
  bars: Bar[];
  /** What a screen reader says of the whole. */
  label: string;
  /** How a value is written on the axis. */
  axis: (value: number) => string;
}

/** Until the place is measured, as on a server. */
const WIDTH = 640;
const HEIGHT = 200;
const LEFT = 44;
const BOTTOM = 22;
const TOP = 10;
/** A bar is no wider, however few there are. */
const MAX_BAR = 56;
/** What a label takes. */
const LABEL = 72;

/** The smallest of 1, 2, 2.5 and 5 times a power of ten that is at least `value`. */
export function niceCeiling(value: number): number {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  const step = [1, 2, 2.5, 5, 10].find((step) => step * power >= value * (1 - 1e-9)) ?? 10;
  return step * power;
}

/** Bars side by side. The arrow keys, the pointer and touch show one bar's value. */
export function BarChart({ bars, label, axis }: BarChartProps) {
  const [shown, show] = useState<number>();
  const id = useId();
  const place = useRef<HTMLDivElement>(null);
  const [width, setWidth] = useState(WIDTH);
  // Drawn as wide as the place is, so that its letters are as large as all others.
  useEffect(() => {
    const element = place.current;
    if (element === null || typeof ResizeObserver === "undefined") return;
    const observer = new ResizeObserver(([entry]) => entry && setWidth(Math.max(160, Math.round(entry.contentRect.width))));
    observer.observe(element);
    return () => observer.disconnect();
  }, []);
  const top = niceCeiling(Math.max(0, ...bars.map((bar) => bar.value)));
  const step = (width - LEFT) / Math.max(1, bars.length);
  const thick = Math.min(step * 0.7, MAX_BAR);
  const y = (value: number) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / top);
  const every = Math.max(1, Math.ceil((bars.length * LABEL) / (width - LEFT)));
  const current = shown === undefined ? undefined : bars[shown];
  const move = (by: number) => show(Math.min(bars.length - 1, Math.max(0, (shown ?? (by > 0 ? -1 : bars.length)) + by)));
  return (
    <div className="fg-chart" ref={place}>
      <svg
        height={HEIGHT}
        viewBox={`0 0 ${width} ${HEIGHT}`}
        role="img"
        aria-label={label}
        aria-describedby={id}
        tabIndex={0}
        onKeyDown={(event) => {
          const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
          if (by === undefined) return;
          event.preventDefault();
          move(by);
        }}
        onBlur={() => show(undefined)}
        onPointerLeave={() => show(undefined)}
      >
        {[0, 0.5, 1].map((part) => (
          <g key={part} className="fg-chart-grid">
            <line x1={LEFT} x2={width} y1={y(top * part)} y2={y(top * part)} />
            <text x={LEFT - 6} y={y(top * part) + 4} textAnchor="end">
              {axis(top * part)}
            </text>
          </g>
        ))}
        {bars.map((bar, index) => (
          <g key={bar.key} className="fg-chart-bar" data-shown={index === shown}>
            <rect
              x={LEFT + index * step + (step - thick) / 2}
              width={thick}
              y={bar.value > 0 ? Math.min(y(bar.value), HEIGHT - BOTTOM - 1) : HEIGHT - BOTTOM}
              height={bar.value > 0 ? Math.max(1, HEIGHT - BOTTOM - y(bar.value)) : 0}
              rx={Math.min(3, step * 0.2)}
            />
            {index % every === 0 && (
              <text className="fg-chart-label" x={LEFT + index * step + step / 2} y={HEIGHT - 6} textAnchor="middle">
                {bar.label}
              </text>
            )}
            <rect
              className="fg-chart-touch"
              x={LEFT + index * step}
              width={step}
              y={TOP}
              height={HEIGHT - TOP - BOTTOM}
              onPointerEnter={() => show(index)}
              onPointerDown={() => show(index)}
            />
          </g>
        ))}
      </svg>
      <p id={id} className="fg-chart-value" role="status">
        {current === undefined ? "\u00a0" : `${current.label}: ${current.text}`}
      </p>
    </div>
  );
}
