"use client";

import { useChat } from "@ai-sdk/react";
import { CheckoutResult, CreditsWarning, PlanSelector } from "@faregate/react";
import { useState } from "react";

export function Chat() {
  const { messages, sendMessage, status, error, clearError } = useChat();
  const [text, type] = useState("");
  const [plans, showPlans] = useState(false);
  const busy = status === "submitted" || status === "streaming";
  const broke = error?.message === "insufficient_credits";
  return (
    <>
      <CheckoutResult />
      <CreditsWarning onUpgrade={() => showPlans(true)} />
      <ol className="messages" aria-live="polite">
        {messages.map((message) => (
          <li key={message.id} data-role={message.role}>
            {message.parts.map((part, index) => (part.type === "text" ? <p key={index}>{part.text}</p> : null))}
          </li>
        ))}
      </ol>
      {(plans || broke) && <PlanSelector />}
      {error !== undefined && !broke && (
        <p role="alert" className="fg-note fg-note-error">
          There was no answer. <button onClick={clearError}>Dismiss</button>
        </p>
      )}
      <form
        onSubmit={(event) => {
          event.preventDefault();
          if (busy || text.trim() === "") return;
          clearError();
          void sendMessage({ text });
          type("");
        }}
      >
        <input
          className="fg-input"
          aria-label="Message"
          placeholder="Say something"
          value={text}
          onChange={(event) => type(event.target.value)}
        />
        <button className="fg-button fg-button-primary" aria-disabled={busy}>
          Send
        </button>
      </form>
    </>
  );
}
