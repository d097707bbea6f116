import { createOpenAI } from "@ai-sdk/openai";
import { APICallError, convertToModelMessages, streamText, type UIMessage } from "ai";
import { GATE, serviceKey, signedInUser } from "../../../lib/gate";

/** Answers a chat through the gateway, which charges the user for it. */
export async function POST(request: Request): Promise<Response> {
  const user = await signedInUser();
  if (user === null) return new Response("sign in first", { status: 401 });
  const { messages } = (await request.json()) as { messages: UIMessage[] };
  const gate = createOpenAI({
    baseURL: `${GATE}/v1`,
    apiKey: serviceKey(),
    headers: { "x-faregate-user": user },
  });
  const result = streamText({
    model: gate.chat(process.env.MODEL ?? "demo"),
    messages: await convertToModelMessages(messages),
    // The gateway has tried again where that can help.
    maxRetries: 0,
    abortSignal: request.signal,
    onError: () => {},
  });
  return result.toUIMessageStreamResponse({
    onError: (error) =>
      APICallError.isInstance(error) && error.statusCode === 402 ? "insufficient_credits" : "no_answer",
  });
}
