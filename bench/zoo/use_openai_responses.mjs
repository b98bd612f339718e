// openai for Node: responses, their stream helper and their parsed answers.
import OpenAI from "openai";
import { zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { CITY, COLOR, KEY, MODEL, TOO_LONG, V1, refused, step } from "./steps.mjs";

const { responses } = new OpenAI({ baseURL: V1, apiKey: KEY, maxRetries: 0 });
const input = [{ role: "user", content: COLOR }];
const ask = { model: MODEL, input, max_output_tokens: 16 };
const tools = [{ type: "function", name: "weather", parameters: CITY, strict: true }];
const Trip = z.object({ city: z.enum(["Paris", "Rome"]) });

await step("plain", async () => {
  if (!(await responses.create(ask)).output_text) throw new Error("empty");
});

await step("stream", async () => {
  const events = responses.stream(ask);
  let text = "";
  for await (const event of events) if (event.type === "response.output_text.delta") text += event.delta;
  if (!text || text !== (await events.finalResponse()).output_text) throw new Error(`streamed: ${text}`);
});

await step("tools", async () => {
  const { output } = await responses.create({ ...ask, max_output_tokens: 64, tools, tool_choice: "required" });
  const { call_id } = output.find((item) => item.type === "function_call");
  const result = { type: "function_call_output", call_id, output: "11 C, rain" };
  await responses.create({ ...ask, tools, input: [...input, ...output, result] });
});

await step("schema", async () => {
  const text = { format: zodTextFormat(Trip, "answer") };
  Trip.parse((await responses.parse({ ...ask, max_output_tokens: 64, text })).output_parsed);
});

await step("turns", async () => {
  const items = [...input];
  for (let turn = 0; turn < 3; turn++) {
    items.push(...(await responses.create({ ...ask, input: items })).output);
    items.push({ role: "user", content: "Another." });
  }
});

await step("too_long", async () => {
  const error = await refused(() => responses.create({ ...ask, input: TOO_LONG }));
  if (error.code !== "context_length_exceeded") throw error;
});

await step("unknown_model", async () => {
  const error = await refused(() => responses.create({ ...ask, model: "no" }));
  if (!(error instanceof OpenAI.NotFoundError)) throw error;
});
