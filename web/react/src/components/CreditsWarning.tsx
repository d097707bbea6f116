"use client";

import { useState } from "react";
import { useCredits } from "../hooks/resources.js";
import { formatCredits } from "../format.js";
import { useFaregate } from "../provider.js";

export interface CreditsWarningProps {
  /** Opens wherever credits are bought. */
  onUpgrade?: (() => void) | undefined;
  /** Warns at this balance, and not when the gateway finds it low. */
  threshold?: number | undefined;
}

/** Says that credits run low, or that none are left; shows nothing while there are enough. */
export function CreditsWarning({ onUpgrade, threshold }: CreditsWarningProps) {
  const { data } = useCredits();
  const { texts, locale } = useFaregate();
  const [dismissed, dismiss] = useState(false);
  if (data === undefined) return null;
  const empty = data.available <= 0;
  const low = threshold === undefined ? data.low : data.available <= threshold;
  // Being out of credits is said again, whoever waved the first warning away.
  if (!empty && (!low || dismissed)) return null;
  return (
    <div className="fg-warning" data-empty={empty} role={empty ? "alert" : "status"}>
      <div>
        <p className="fg-warning-title">{empty ? texts.warningEmpty : texts.warningLow}</p>
        <p>{empty ? texts.warningEmptyText : texts.warningLowText(formatCredits(data.available, locale))}</p>
      </div>
      <div className="fg-actions">
        {onUpgrade !== undefined && (
          <button type="button" className="fg-button fg-button-primary" onClick={onUpgrade}>
            {texts.warningAction}
          </button>
        )}
        {!empty && (
          <button type="button" className="fg-button fg-button-quiet" onClick={() => dismiss(true)}>
            {texts.dismiss}
          </button>
        )}
      </div>
    </div>
  );
}
