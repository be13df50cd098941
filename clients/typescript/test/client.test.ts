// Sessions, turns over HTTP, the past of a session, generations, and refusals, against a live server.

import assert from "node:assert/strict";
import { test } from "node:test";
import { Conflict, ConnectionLost, HopeClient, InvalidRequest, NotFound, Unauthorized, Unreachable } from "hope-client";
import { all, client, completed, Cutting, newId, seen } from "./server.js";

const ASKED = { max_tokens: 6, temperature: 0 };

test("a session is made, changed, found in the list and erased", async () => {
  const hope = client();
  const session = await hope.createSession({ id: newId(), metadata: { of: "tests" } });
  assert.equal(session.version, 0);
  assert.deepEqual((await hope.updateSession(session, { metadata: { of: "them" } })).metadata, { of: "them" });
  const other = await hope.createSession();
  const ids = (await all(hope.sessions({ pageSize: 1 }))).map((one) => one.id);
  assert.ok(ids.includes(session.id) && ids.includes(other.id));
  assert.equal((await hope.deleteSession(other)).deleted, true);
  await assert.rejects(hope.session(other), NotFound);
  await assert.rejects(hope.createSession({ id: session.id }), (error: Conflict) => {
    assert.ok(error instanceof Conflict);
    assert.deepEqual([error.status, error.code, error.repeatable], [409, "conflict", false]);
    return true;
  });
});

test("turns are learned, listed, looked into, undone, forked and carried elsewhere", async () => {
  const hope = client();
  const { id } = await hope.createSession({ id: newId() });
  const first = await hope.turn(id, "My dog is called Zürich ☃.", ASKED);
  const events = await all(hope.turnEvents(id, "What is my dog called?", ASKED));
  assert.equal(events[0]?.type, "turn.created");
  assert.equal(seen(events), completed(events).reply);
  assert.deepEqual(await all(hope.transcript(id, { pageSize: 1 })).then((turns) => turns.map((turn) => turn.id)), [
    first.id,
    completed(events).id,
  ]);
  assert.equal((await hope.memory(id)).surprise.length, 2);
  assert.deepEqual((await hope.versions(id)).map((one) => one.version), [2, 1]);
  assert.equal((await hope.fork(id, { version: 1 })).num_turns, 1);
  const copy = await hope.importSession(await hope.exportSession(id), newId());
  assert.equal(copy.version, 2);
  assert.equal((await hope.rollback(id, 1)).version, 3);
});

test("the same key learns once", async () => {
  const hope = client();
  const { id } = await hope.createSession();
  const options = { ...ASKED, idempotencyKey: "once" };
  const turns = [await hope.turn(id, "hello", options), await hope.turn(id, "hello", options)];
  assert.equal(turns[0]?.id, turns[1]?.id);
  await assert.rejects(hope.turn(id, "something else", options), Conflict);
});

test("generations are listed, switched and consolidated", async () => {
  const hope = client();
  const consolidation = await hope.consolidate({ wait: true });
  assert.equal(consolidation.status, "empty");
  assert.equal((await hope.consolidation(consolidation.id)).id, consolidation.id);
  assert.equal((await hope.consolidations())[0]?.id, consolidation.id);
  assert.deepEqual((await hope.generations()).map((one) => one.generation), [0]);
  assert.equal((await hope.activateGeneration(0)).active, true);
});

test("a refusal says which field", async () => {
  const hope = client();
  const { id } = await hope.createSession();
  await assert.rejects(hope.turn(id, "hello", { temperature: 9 }), (error: InvalidRequest) => {
    assert.ok(error instanceof InvalidRequest);
    assert.deepEqual([error.name, error.status, error.param], ["InvalidRequest", 400, "temperature"]);
    return true;
  });
  await assert.rejects(all(hope.turnEvents("nobody", "hello")), NotFound);
});

test("a wrong key is told over HTTP and over a websocket", async () => {
  const stranger = client(undefined, { apiKey: "wrong" });
  await assert.rejects(stranger.session("s"), Unauthorized);
  await assert.rejects(stranger.stream("s"), Unauthorized);
});

test("nobody there is said at once", async () => {
  const cutting = await Cutting.open();
  cutting.close();
  const begun = Date.now();
  const nobody = client(cutting.url);
  await assert.rejects(nobody.turn("s", "hello"), (error: Unreachable) => {
    assert.equal(error.message, `No server answers at ${cutting.url}.`);
    return error instanceof Unreachable && !(error instanceof ConnectionLost);
  });
  await assert.rejects(nobody.stream("s"), Unreachable);
  assert.ok(Date.now() - begun < 3000);
});

test("without any websocket it says how to give one", async () => {
  const there = Object.getOwnPropertyDescriptor(globalThis, "WebSocket");
  Reflect.deleteProperty(globalThis, "WebSocket");
  try {
    const hope = new HopeClient("http://127.0.0.1:9");
    await assert.rejects(hope.stream("s"), /give one: new HopeClient\(url, \{ WebSocket \}/);
  } finally {
    if (there !== undefined) Object.defineProperty(globalThis, "WebSocket", there);
  }
});

test("a lost answer is fetched and not learned twice", async () => {
  const { id } = await client().createSession();
  const cutting = await Cutting.open("HTTP/1.1 200", "HTTP/1.1 200");
  const turn = await client(cutting.url).turn(id, "hello", ASKED);
  assert.deepEqual(cutting.cutAt, []);
  assert.deepEqual(await all(client().transcript(id)), [turn]);
  cutting.close();
});

test("attempts are bounded, and what is not safe to repeat is not repeated", async () => {
  const { id } = await client().createSession();
  const cutting = await Cutting.open(...Array<string>(9).fill("HTTP/1.1 20"));
  await assert.rejects(client(cutting.url, { maxAttempts: 3 }).turn(id, "hello", ASKED), ConnectionLost);
  assert.equal(cutting.cutAt.length, 6);
  await assert.rejects(client(cutting.url).createSession(), ConnectionLost);
  assert.equal(cutting.cutAt.length, 5);
  cutting.close();
});

for (const where of ["turn.created", "turn.token", "turn.completed"]) {
  test(`a stream that breaks at ${where} is told to its end`, async () => {
    const { id } = await client().createSession();
    const cutting = await Cutting.open(where);
    const events = await all(client(cutting.url).turnEvents(id, "hello", ASKED));
    assert.deepEqual(cutting.cutAt, []);
    assert.equal(seen(events), completed(events).reply);
    assert.deepEqual((await all(client().transcript(id))).map((turn) => turn.id), [completed(events).id]);
    cutting.close();
  });
}

test("leaving a stream and aborting a turn cancel them", async () => {
  const hope = client();
  const { id } = await hope.createSession();
  for await (const event of hope.turnEvents(id, "hello", { max_tokens: 1024 })) {
    if (event.type === "turn.token") break;
  }
  const leaving = new AbortController();
  const turn = hope.turn(id, "hello", { max_tokens: 1024, signal: leaving.signal });
  setTimeout(() => leaving.abort(), 100);
  await assert.rejects(turn, { name: "AbortError" });
  assert.equal((await hope.turn(id, "hello", ASKED)).index, 0);
});
