// openai-agents for JavaScript, by chat or by responses. By responses it refuses an answer that is cut off.
// A typed answer ends by itself.
import { Agent, MaxTurnsExceededError, OpenAIProvider, Runner, tool } from "@openai/agents";
import OpenAI from "openai";
import { z } from "zod";
import { COLOR, KEY, MODEL, TOO_LONG, V1, refused, step } from "./steps.mjs";

const openAIClient = new OpenAI({ baseURL: V1, apiKey: KEY, maxRetries: 0 });
const modelProvider = new OpenAIProvider({ openAIClient, useResponses: process.argv[2] === "responses" });
const runner = new Runner({ modelProvider, tracingDisabled: true });
const City = z.object({ city: z.enum(["Paris", "Rome"]) });
const SETTINGS = { maxTokens: 200, temperature: 0 };
const agent = (more = {}) =>
  new Agent({ name: "helper", instructions: "Be brief.", model: MODEL, modelSettings: SETTINGS, ...more });

await step("plain", async () => {
  if (!(await runner.run(agent(), COLOR)).finalOutput) throw new Error("empty");
});

await step("stream", async () => {
  const result = await runner.run(agent({ outputType: City }), COLOR, { stream: true });
  let text = "";
  for await (const more of result.toTextStream()) text += more;
  await result.completed;
  if (!text) throw new Error("empty");
});

await step("tools", async () => {
  let called = 0;
  const execute = () => `11 C, ${++called}`;
  const weather = tool({ name: "weather", description: "The weather in a city.", parameters: City, execute });
  const modelSettings = { ...SETTINGS, toolChoice: "required" }; // the client resets it after the call
  const helper = agent({ tools: [weather], outputType: City, modelSettings });
  try {
    await runner.run(helper, COLOR, { maxTurns: 3 });
  } catch (error) {
    if (!(error instanceof MaxTurnsExceededError)) throw error; // this model may call again all the same
  }
  if (!called) throw new Error("no call");
});

await step("schema", async () => {
  City.parse((await runner.run(agent({ outputType: City }), COLOR)).finalOutput);
});

await step("turns", async () => {
  let items = [{ role: "user", content: COLOR }];
  for (let turn = 0; turn < 3; turn++) {
    const { history } = await runner.run(agent({ outputType: City }), items);
    items = [...history, { role: "user", content: "Another." }];
  }
});

await step("too_long", async () => {
  const error = await refused(() => runner.run(agent(), TOO_LONG));
  if (error.code !== "context_length_exceeded") throw error;
});

await step("unknown_model", async () => {
  const error = await refused(() => runner.run(agent({ model: "no" }), COLOR));
  if (error.status !== 404) throw error;
});
