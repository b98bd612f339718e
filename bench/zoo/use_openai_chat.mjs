// openai for Node: chat, its stream helper and its parsed answers.
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { CITY, COLOR, KEY, MODEL, TOO_LONG, V1, refused, step } from "./steps.mjs";

const { completions } = new OpenAI({ baseURL: V1, apiKey: KEY, maxRetries: 0 }).chat;
const messages = [{ role: "user", content: COLOR }];
const ask = { model: MODEL, messages, max_tokens: 8 };
const tools = [{ type: "function", function: { name: "weather", parameters: CITY, strict: true } }];
const call = { ...ask, max_tokens: 64, tools };
const Trip = z.object({ city: z.enum(["Paris", "Rome"]), days: z.number().int().min(1).max(9) });
const Row = z.object({ id: z.uuid(), day: z.iso.date() }); // zod sends format and pattern

await step("plain", async () => {
  const answer = await completions.create(ask);
  if (!answer.choices[0].message.content || !answer.usage.completion_tokens) throw new Error("empty");
});

await step("stream", async () => {
  let text = "";
  for await (const chunk of await completions.create({ ...ask, stream: true }))
    text += chunk.choices[0]?.delta.content ?? "";
  if (!text) throw new Error("empty");
});

await step("stream_helper", async () => {
  if (!(await completions.stream({ ...ask, stop: [" "] }).finalContent())) throw new Error("empty");
});

await step("tools", async () => {
  const { message } = (await completions.create({ ...call, tool_choice: "required" })).choices[0];
  const result = { role: "tool", tool_call_id: message.tool_calls[0].id, content: "11 C, rain" };
  await completions.create({ ...ask, tools, messages: [...messages, message, result] });
});

await step("tools_helper", async () => {
  const run = (args) => `11 C in ${args.city}`;
  const weather = { name: "weather", description: "The weather.", parameters: CITY, function: run, parse: JSON.parse };
  const tool_choice = { type: "function", function: { name: "weather" } };
  const runner = completions.runTools({ ...call, tools: [{ type: "function", function: weather }], tool_choice });
  if (!(await runner.finalFunctionToolCallResult())) throw new Error("no result");
});

for (const [name, kind] of Object.entries({ schema: Trip, schema_with_formats: Row }))
  await step(name, async () => {
    const response_format = zodResponseFormat(kind, "answer");
    const answer = await completions.parse({ ...ask, max_tokens: 96, response_format });
    kind.parse(answer.choices[0].message.parsed);
  });

await step("turns", async () => {
  const history = [...messages];
  for (let turn = 0; turn < 3; turn++) {
    history.push((await completions.create({ ...ask, messages: history })).choices[0].message);
    history.push({ role: "user", content: "Another." });
  }
});

await step("too_long", async () => {
  const error = await refused(() => completions.create({ ...ask, messages: [{ role: "user", content: TOO_LONG }] }));
  if (!(error instanceof OpenAI.BadRequestError) || error.code !== "context_length_exceeded") throw error;
});

await step("unknown_model", async () => {
  const error = await refused(() => completions.create({ ...ask, model: "no" }));
  if (!(error instanceof OpenAI.NotFoundError)) throw error;
});
