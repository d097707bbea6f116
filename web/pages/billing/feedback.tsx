import { useFaregate } from "@faregate/react";
import { useId, useState } from "react";
import { Failure } from "../../react/src/components/parts.js";
import { useAction } from "../../react/src/hooks/resources.js";
import type { PageTexts } from "./texts.js";

const MAX_CHARS = 2_000;

/** A few words to whoever runs the service. */
export function Feedback({ texts }: { texts: PageTexts }) {
  const { client } = useFaregate();
  const [message, write] = useState("");
  const [score, rate] = useState(0);
  const [sent, send] = useState(false);
  const action = useAction();
  const id = useId();
  const submit = async () => {
    const body = score > 0 ? { rating: score, message } : { message };
    if (await action.run(() => client.post("/feedback", body))) {
      send(true);
      write("");
    }
  };
  return (
    <details>
      <summary>{texts.feedback}</summary>
      {sent ? (
        <p role="status">{texts.feedbackSent}</p>
      ) : (
        <form
          className="stack"
          onSubmit={(event) => {
            event.preventDefault();
            if (!action.busy && message.trim() !== "") void submit();
          }}
        >
          <div className="field">
            <label htmlFor={id}>{texts.feedbackText}</label>
            <textarea
              id={id}
              className="fg-input"
              maxLength={MAX_CHARS}
              required
              value={message}
              onChange={(event) => write(event.target.value)}
            />
          </div>
          <div className="form">
            <label>
              {texts.feedbackScore}
              <select value={score} onChange={(event) => rate(Number(event.target.value))}>
                <option value={0}>–</option>
                {texts.scores.map((name, index) => (
                  <option key={name} value={index + 1}>
                    {name}
                  </option>
                ))}
              </select>
            </label>
            <button type="submit" className="fg-button" aria-disabled={action.busy}>
              {texts.feedbackSend}
            </button>
          </div>
          {action.error !== undefined && <Failure error={action.error} />}
        </form>
      )}
    </details>
  );
}
