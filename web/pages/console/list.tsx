import { FaregateError, useFaregate, type List } from "@faregate/react";
import { useEffect, useState, type ReactNode } from "react";
import { Answer, Failure } from "../../react/src/components/parts.js";
import { useAction, useResource, type Query } from "../../react/src/hooks/resources.js";

/** A list of the operator's API that grows page by page. */
export function useList<T>(path: string): Query<List<T>> & { more: (() => Promise<void>) | undefined } {
  const { store, client } = useFaregate();
  const resource = store.resource(path, () => client.get<List<T>>(path));
  const query = useResource(resource);
  const next = query.data?.next ?? null;
  const more = async () => {
    if (next === null) return;
    const page = await client.get<List<T>>(`${path}${path.includes("?") ? "&" : "?"}cursor=${encodeURIComponent(next)}`);
    resource.update((list) => ({ data: [...list.data, ...page.data], next: page.next }));
  };
  return { ...query, more: next === null ? undefined : more };
}

export function Listing<T>({
  path,
  empty,
  label,
  head,
  row,
}: {
  path: string;
  empty: string;
  label: string;
  head: readonly string[];
  row: (item: T) => ReactNode;
}) {
  const query = useList<T>(path);
  const action = useAction();
  return (
    <Answer query={query} rows={5}>
      {({ data }) =>
        data.length === 0 ? (
          <p className="fg-empty">{empty}</p>
        ) : (
          <>
            <div className="fg-scroll" role="group" aria-label={label} tabIndex={0}>
              <table className="fg-table">
                <thead>
                  <tr>
                    {head.map((name) => (
                      <th key={name} scope="col">
                        {name}
                      </th>
                    ))}
                  </tr>
                </thead>
                <tbody>{data.map(row)}</tbody>
              </table>
            </div>
            {query.more !== undefined && (
              <button
                type="button"
                className="fg-button"
                aria-disabled={action.busy}
                onClick={() => !action.busy && query.more && void action.run(query.more)}
              >
                Show more
              </button>
            )}
            {action.error !== undefined && <Failure error={action.error} />}
          </>
        )
      }
    </Answer>
  );
}

/** A text that is asked for only once its typist has paused. */
export function useSettled(text: string, ms = 250): string {
  const [settled, settle] = useState(text);
  useEffect(() => {
    const timer = setTimeout(() => settle(text), ms);
    return () => clearTimeout(timer);
  }, [text, ms]);
  return settled;
}

/** What the gateway said of a refusal, in full: operators are told everything. */
export function Refusal({ error }: { error: FaregateError | undefined }) {
  if (error === undefined) return null;
  return (
    <p className="fg-note fg-note-error" role="alert">
      {error.message} {error.requestId !== null && <span className="code">{error.requestId}</span>}
    </p>
  );
}
