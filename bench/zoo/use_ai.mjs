// Vercel's ai with one of its providers: compatible, chat or responses.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateText, Output, streamText, tool } from "ai";
import { z } from "zod";
import { COLOR, KEY, MODEL, TOO_LONG, V1, refused, step } from "./steps.mjs";

const [provider] = process.argv.slice(2);
const options = { name: "finechat", baseURL: V1, apiKey: KEY };
const compatible = createOpenAICompatible({ ...options, includeUsage: true, supportsStructuredOutputs: true });
const openai = createOpenAI(options);
const named = { compatible, chat: openai.chat, responses: openai.responses }[provider];
const ask = { model: named(MODEL), maxOutputTokens: 8, maxRetries: 0 };
const Row = z.object({ city: z.enum(["Paris", "Rome"]), id: z.uuid() }); // zod sends format and pattern

await step("plain", async () => {
  if (!(await generateText({ ...ask, system: "Be brief.", prompt: COLOR })).text) throw new Error("empty");
});

await step("stream", async () => {
  let text = "";
  const fail = ({ error }) => (fail.error = error);
  for await (const more of streamText({ ...ask, prompt: COLOR, onError: fail }).textStream) text += more;
  if (!text) throw fail.error ?? new Error("empty");
});

await step("tools", async () => {
  const inputSchema = z.object({ city: z.enum(["Paris", "Rome"]) });
  const weather = tool({ description: "The weather in a city.", inputSchema, execute: () => "11 C, rain" });
  const prepareStep = ({ stepNumber }) => ({ toolChoice: stepNumber ? "auto" : "required" });
  const asked = { ...ask, maxOutputTokens: 32, prompt: COLOR, tools: { weather }, stopWhen: ({ steps }) => steps.length > 1, prepareStep };
  const { steps } = await generateText(asked);
  if (steps.length < 2 || !steps[0].toolResults.length) throw new Error(`${steps.length} steps`);
});

await step("schema", async () => {
  const asked = { ...ask, maxOutputTokens: 96, prompt: COLOR, output: Output.object({ schema: Row }) };
  Row.parse((await generateText(asked)).output);
});

async function turns(providerOptions) {
  const messages = [{ role: "user", content: COLOR }];
  for (let turn = 0; turn < 3; turn++) {
    messages.push(...(await generateText({ ...ask, messages, providerOptions })).response.messages);
    messages.push({ role: "user", content: "Another." });
  }
}

await step("turns", () => turns({}));
if (provider === "responses") await step("turns_store_false", () => turns({ openai: { store: false } }));

await step("too_long", async () => {
  const error = await refused(() => generateText({ ...ask, prompt: TOO_LONG }));
  if (!APICallError.isInstance(error) || error.statusCode !== 400 || error.isRetryable) throw error;
  if (error.data?.error.code !== "context_length_exceeded") throw error;
});

await step("unknown_model", async () => {
  const error = await refused(() => generateText({ ...ask, model: named("no"), prompt: COLOR }));
  if (!APICallError.isInstance(error) || error.statusCode !== 404) throw error;
});
