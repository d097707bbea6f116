/** What the gateway wrote into the HTML. */
export interface Facts {
  /** Where the API answers. */
  api: string;
  /** Where this page answers. */
  page: string;
  /** Whether plans and packs can be bought. */
  sells?: boolean;
  version?: string;
}

export function facts(): Facts {
  const text = document.querySelector<HTMLMetaElement>('meta[name="faregate"]')?.content ?? "{}";
  return { api: "/api", page: "/billing", ...(JSON.parse(text) as Partial<Facts>) };
}
