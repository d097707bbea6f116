import { formatDate, useFaregate, type FaregateClient } from "@faregate/react";
import { useRef, useState } from "react";
import { Answer, Badge, Failure, Section } from "../../react/src/components/parts.js";
import { focusOnce } from "../../react/src/components/PlanSelector.js";
import { useAction, useResource } from "../../react/src/hooks/resources.js";
import type { PageTexts } from "./texts.js";

interface Key {
  id: string;
  name: string;
  prefix: string;
  created_at: string;
  last_used_at: string | null;
  expires_at: string | null;
}

interface NewKey extends Key {
  key: string;
}

const LIFETIMES_DAYS = [0, 30, 90, 365];

/** The user's own keys: to make, to see once, to revoke. */
export function Keys({ texts }: { texts: PageTexts }) {
  const { store, client } = useFaregate();
  const query = useResource(store.resource("keys", () => client.get<{ data: Key[] }>("/keys?limit=100")));
  const [made, make] = useState<NewKey>();
  return (
    <Section title={texts.keys} className="keys">
      {made !== undefined && <Fresh made={made} texts={texts} />}
      <Create
        client={client}
        texts={texts}
        onMade={(key) => {
          make(key);
          void query.reload();
        }}
      />
      <Answer query={query}>
        {({ data }) =>
          data.length === 0 ? (
            <p className="fg-empty">{texts.keysEmpty}</p>
          ) : (
            <ul className="items">
              {data.map((key) => (
                <Row key={key.id} it={key} client={client} texts={texts} onRevoked={query.reload} />
              ))}
            </ul>
          )
        }
      </Answer>
    </Section>
  );
}

function Fresh({ made, texts }: { made: NewKey; texts: PageTexts }) {
  const [copied, copy] = useState(false);
  return (
    <div className="fg-note" data-result="success" role="status">
      <p className="fg-note-title">{texts.keyNew}</p>
      <p className="code">{made.key}</p>
      <p>{texts.keyNewText}</p>
      <button
        type="button"
        className="fg-button"
        onClick={() => void navigator.clipboard?.writeText(made.key).then(() => copy(true), () => {})}
      >
        {copied ? texts.keyCopied : texts.keyCopy}
      </button>
    </div>
  );
}

function Create({ client, texts, onMade }: { client: FaregateClient; texts: PageTexts; onMade: (key: NewKey) => void }) {
  const [name, setName] = useState("");
  const [days, setDays] = useState(0);
  const action = useAction();
  // Sent again, after an answer that never came, it makes no second key.
  const sent = useRef<{ form: string; id: string; body: Record<string, unknown> } | undefined>(undefined);
  const submit = () =>
    action.run(async () => {
      const form = JSON.stringify([name, days]);
      if (sent.current?.form !== form) {
        const expires_at = days > 0 ? new Date(Date.now() + days * 86_400_000).toISOString() : undefined;
        const body = expires_at === undefined ? { name } : { name, expires_at };
        sent.current = { form, id: crypto.getRandomValues(new Uint32Array(4)).join("-"), body };
      }
      onMade(await client.post<NewKey>("/keys", sent.current.body, sent.current.id));
      sent.current = undefined;
      setName("");
    });
  return (
    <form
      className="form"
      onSubmit={(event) => {
        event.preventDefault();
        if (!action.busy && name.trim() !== "") void submit();
      }}
    >
      <label className="grow">
        {texts.keyName}
        <input className="fg-input" value={name} maxLength={128} required onChange={(event) => setName(event.target.value)} />
      </label>
      <label>
        {texts.keyExpires}
        <select value={days} onChange={(event) => setDays(Number(event.target.value))}>
          {LIFETIMES_DAYS.map((days) => (
            <option key={days} value={days}>
              {days === 0 ? texts.keyNever : texts.keyDays(days)}
            </option>
          ))}
        </select>
      </label>
      <button type="submit" className="fg-button fg-button-primary" aria-disabled={action.busy}>
        {texts.keyCreate}
      </button>
      {action.error !== undefined && <Failure error={action.error} />}
    </form>
  );
}

function Row({ it, client, texts, onRevoked }: { it: Key; client: FaregateClient; texts: PageTexts; onRevoked: () => unknown }) {
  const { locale } = useFaregate();
  const action = useAction();
  const [asked, ask] = useState(false);
  const facts = [
    texts.keyCreated(formatDate(it.created_at, locale)),
    it.last_used_at ? texts.keyUsed(formatDate(it.last_used_at, locale)) : texts.keyUnused,
    it.expires_at && texts.keyEnds(formatDate(it.expires_at, locale)),
  ].filter(Boolean);
  const revoke = () => action.run(() => client.delete(`/keys/${encodeURIComponent(it.id)}`).then(onRevoked));
  return (
    <li>
      <div className="what">
        <span>
          {it.name} <Badge tone="plain">{it.prefix}…</Badge>
        </span>
        <span className="soft">{facts.join(" · ")}</span>
      </div>
      {asked ? (
        <div className="fg-confirm" role="group" aria-label={texts.keyRevokeTitle(it.name)}>
          <p>
            <strong>{texts.keyRevokeTitle(it.name)}</strong> {texts.keyRevokeText}
          </p>
          <div className="fg-actions">
            <button type="button" className="fg-button" ref={focusOnce} onClick={() => ask(false)}>
              {texts.keep}
            </button>
            <button type="button" className="fg-button fg-button-danger" aria-disabled={action.busy} onClick={() => void revoke()}>
              {texts.keyRevoke}
            </button>
          </div>
          {action.error !== undefined && <Failure error={action.error} />}
        </div>
      ) : (
        <button type="button" className="fg-button" aria-label={texts.keyRevokeNamed(it.name)} onClick={() => ask(true)}>
          {texts.keyRevoke}
        </button>
      )}
    </li>
  );
}
