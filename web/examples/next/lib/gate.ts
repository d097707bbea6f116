import "server-only";

/** The gateway, and the service key that names users to it. Both stay on the server. */
export const GATE = process.env.FAREGATE_URL ?? "http://127.0.0.1:8080";

export function serviceKey(): string {
  const key = process.env.FAREGATE_SERVICE_KEY;
  if (!key) throw new Error("set FAREGATE_SERVICE_KEY to a service key: curl -X POST …/admin/v1/keys");
  return key;
}

/** Who is signed in. Ask your own sign-in here, such as `(await stackServerApp.getUser())?.id`. */
export async function signedInUser(): Promise<string | null> {
  return process.env.DEMO_USER ?? "next-demo";
}
