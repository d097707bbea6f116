import { formatCredits, formatDate, formatDateTime, useFaregate } from "@faregate/react";
import { useRef, useState } from "react";
import { Answer, Badge, Section } from "../../react/src/components/parts.js";
import { focusOnce } from "../../react/src/components/PlanSelector.js";
import { useAction, useResource } from "../../react/src/hooks/resources.js";
import { Listing, Refusal, useSettled } from "./list.js";

interface User {
  id: string;
  email: string | null;
  plan: string;
  status: "active" | "frozen" | "closed";
  created_at: string;
}

interface Grant {
  id: number;
  kind: string;
  amount: number;
  remaining: number;
  expires_at: string | null;
  frozen: boolean;
  note: string | null;
  created_at: string;
}

interface Shown extends User {
  credits: { available: number; held: number; debt: number };
  grants: Grant[];
}

interface Use {
  request_id: string;
  model: string | null;
  route: string;
  status: number;
  credits: number;
  created_at: string;
}

const KINDS = ["promo", "topup", "adjust", "plan", "free"];

export function Users() {
  const [text, type] = useState("");
  const [chosen, choose] = useState<string>();
  const search = useSettled(text.trim());
  if (chosen !== undefined) return <OneUser id={chosen} onBack={() => choose(undefined)} />;
  const path = search === "" ? "/users?limit=50" : `/users?limit=50&search=${encodeURIComponent(search)}`;
  return (
    <Section title="Users" className="users">
      <label className="field">
        Search by the beginning of an id or an address
        <input className="fg-input" type="search" value={text} maxLength={320} onChange={(event) => type(event.target.value)} />
      </label>
      <Listing<User>
        key={path}
        path={path}
        label="Users"
        empty="No such users."
        head={["User", "Address", "Plan", "Status", "Since"]}
        row={(user) => (
          <tr key={user.id}>
            <th scope="row">
              <button type="button" className="fg-button fg-button-quiet as-link" onClick={() => choose(user.id)}>
                {user.id}
              </button>
            </th>
            <td>{user.email ?? "–"}</td>
            <td>{user.plan}</td>
            <td>
              <Status status={user.status} />
            </td>
            <td>
              <Day time={user.created_at} />
            </td>
          </tr>
        )}
      />
    </Section>
  );
}

function Day({ time }: { time: string }) {
  const { locale } = useFaregate();
  return <>{formatDate(time, locale)}</>;
}

function Status({ status }: { status: User["status"] }) {
  return <Badge tone={status === "active" ? "good" : status === "frozen" ? "bad" : "plain"}>{status}</Badge>;
}

function OneUser({ id, onBack }: { id: string; onBack: () => void }) {
  const { store, client, locale } = useFaregate();
  const path = `/users/${encodeURIComponent(id)}`;
  const query = useResource(store.resource(path, () => client.get<Shown>(path)));
  const freeze = useAction();
  const frozen = query.data?.status === "frozen";
  const [asked, ask] = useState(false);
  const toggle = () =>
    freeze.run(async () => {
      await (frozen ? client.delete(`${path}/freeze`) : client.post(`${path}/freeze`, {}));
      ask(false);
      await query.reload();
    });
  return (
    <>
      <div>
        <button type="button" className="fg-button" ref={focusOnce} onClick={onBack}>
          ← All users
        </button>
      </div>
      <Section title={id} className="user" actions={query.data && <Status status={query.data.status} />}>
        <Answer query={query}>
          {(user) => (
            <>
              <dl className="fg-sums">
                <Fact name="Available" value={formatCredits(user.credits.available, locale)} />
                <Fact name="Held" value={formatCredits(user.credits.held, locale)} />
                <Fact name="Owed" value={formatCredits(user.credits.debt, locale)} />
                <Fact name="Plan" value={user.plan} />
                <Fact name="Since" value={formatDate(user.created_at, locale)} />
              </dl>
              <p className="soft">{user.email ?? "No address is known."}</p>
              {asked ? (
                <div className="fg-confirm" role="group" aria-label={frozen ? "Unfreeze?" : "Freeze?"}>
                  <p>
                    {frozen
                      ? "The account may spend again."
                      : "Nothing new is admitted; what is under way is finished and charged."}
                  </p>
                  <div className="fg-actions">
                    <button type="button" className="fg-button" ref={focusOnce} onClick={() => ask(false)}>
                      Leave it
                    </button>
                    <button
                      type="button"
                      className="fg-button fg-button-danger"
                      aria-disabled={freeze.busy}
                      onClick={() => !freeze.busy && void toggle()}
                    >
                      {frozen ? "Unfreeze" : "Freeze"}
                    </button>
                  </div>
                </div>
              ) : (
                user.status !== "closed" && (
                  <div className="fg-actions">
                    <button type="button" className="fg-button" onClick={() => ask(true)}>
                      {frozen ? "Unfreeze…" : "Freeze…"}
                    </button>
                    <BillingLink path={path} />
                  </div>
                )
              )}
              <Refusal error={freeze.error} />
            </>
          )}
        </Answer>
      </Section>
      {query.data !== undefined && query.data.status !== "closed" && <GiveCredits path={path} onGiven={() => void query.reload()} />}
      <Section title="Grants" className="grants">
        <Answer query={query}>{(user) => <Grants grants={user.grants} />}</Answer>
      </Section>
      <Section title="Latest usage" className="user-usage">
        <Listing<Use>
          path={`${path}/usage?limit=20`}
          label="Latest usage"
          empty="Nothing has been used."
          head={["When", "Route", "Model", "Status", "Credits"]}
          row={(use) => (
            <tr key={use.request_id}>
              <td>{formatDateTime(use.created_at, locale)}</td>
              <td>{use.route}</td>
              <td>{use.model ?? "–"}</td>
              <td>{use.status}</td>
              <td>{formatCredits(use.credits, locale)}</td>
            </tr>
          )}
        />
      </Section>
    </>
  );
}

function Fact({ name, value }: { name: string; value: string }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{value}</dd>
    </div>
  );
}

function BillingLink({ path }: { path: string }) {
  const { client } = useFaregate();
  const [url, show] = useState<string>();
  const action = useAction();
  const make = () => action.run(async () => show((await client.post<{ url: string }>(`${path}/billing-link`, {})).url));
  return (
    <>
      <button type="button" className="fg-button fg-button-quiet" onClick={() => void make()}>
        Make a link to the billing page
      </button>
      {url !== undefined && (
        <p className="fg-note" role="status">
          It opens once, for whoever has it: <span className="code">{url}</span>
        </p>
      )}
      <Refusal error={action.error} />
    </>
  );
}

function GiveCredits({ path, onGiven }: { path: string; onGiven: () => void }) {
  const { client } = useFaregate();
  const [amount, setAmount] = useState("");
  const [kind, setKind] = useState("promo");
  const [note, setNote] = useState("");
  const [days, setDays] = useState("");
  // The same grant sent again, after an answer that never came, is given once; another one has a key of its own.
  const sent = useRef<{ form: string; key: string; body: Record<string, unknown> } | undefined>(undefined);
  const action = useAction();
  const submit = () =>
    action.run(async () => {
      const form = JSON.stringify([amount, kind, note, days]);
      if (sent.current?.form !== form) {
        const body: Record<string, unknown> = { amount: Number(amount), kind };
        if (note.trim() !== "") body["note"] = note.trim();
        if (days !== "") body["expires_at"] = new Date(Date.now() + Number(days) * 86_400_000).toISOString();
        sent.current = { form, key: crypto.getRandomValues(new Uint32Array(4)).join("-"), body };
      }
      await client.post(`${path}/grants`, sent.current.body, sent.current.key);
      sent.current = undefined;
      setAmount("");
      setNote("");
      onGiven();
    });
  return (
    <Section title="Give credits" className="give">
      <form
        className="form"
        onSubmit={(event) => {
          event.preventDefault();
          if (!action.busy) void submit();
        }}
      >
        <label>
          Amount
          <input
            className="fg-input"
            type="number"
            min="0.000001"
            step="any"
            required
            value={amount}
            onChange={(event) => setAmount(event.target.value)}
          />
        </label>
        <label>
          Kind
          <select value={kind} onChange={(event) => setKind(event.target.value)}>
            {KINDS.map((kind) => (
              <option key={kind}>{kind}</option>
            ))}
          </select>
        </label>
        <label>
          Expires in days
          <input
            className="fg-input"
            type="number"
            min="1"
            step="1"
            placeholder="never"
            value={days}
            onChange={(event) => setDays(event.target.value)}
          />
        </label>
        <label className="grow">
          Note
          <input className="fg-input" maxLength={512} value={note} onChange={(event) => setNote(event.target.value)} />
        </label>
        <button type="submit" className="fg-button fg-button-primary" aria-disabled={action.busy}>
          Give
        </button>
      </form>
      <Refusal error={action.error} />
    </Section>
  );
}

function Grants({ grants }: { grants: Grant[] }) {
  const { locale } = useFaregate();
  if (grants.length === 0) return <p className="fg-empty">No grants.</p>;
  return (
    <div className="fg-scroll" role="group" aria-label="Grants" tabIndex={0}>
      <table className="fg-table">
        <thead>
          <tr>
            <th scope="col">Given</th>
            <th scope="col">Kind</th>
            <th scope="col" className="fg-number">
              Amount
            </th>
            <th scope="col" className="fg-number">
              Remaining
            </th>
            <th scope="col">Expires</th>
            <th scope="col">Note</th>
          </tr>
        </thead>
        <tbody>
          {grants.map((grant) => (
            <tr key={grant.id}>
              <td>{formatDate(grant.created_at, locale)}</td>
              <td>
                {grant.kind} {grant.frozen && <Badge tone="bad">frozen</Badge>}
              </td>
              <td className="fg-number">{formatCredits(grant.amount, locale)}</td>
              <td className="fg-number">{formatCredits(grant.remaining, locale)}</td>
              <td>{grant.expires_at === null ? "never" : formatDate(grant.expires_at, locale)}</td>
              <td className="fg-wrap">{grant.note ?? "–"}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
