// What the server sends and takes, with the contract's own field names.
//
// Times are ISO-8601 UTC, sizes bytes, durations in the unit that the name ends with. A newer server may send more.

/** A conversation and its memory. `version` is 0 when new and grows by one with every change of memory. */
export interface Session {
  id: string;
  object: "session";
  created_at: string;
  updated_at: string;
  version: number;
  generation: number;
  num_turns: number;
  num_tokens: number;
  memory_bytes: number;
  contribute: boolean;
  metadata: Record<string, string>;
}

/** What is left of a session. `generations` had learned from it; absent where none had. */
export interface SessionDeleted {
  id: string;
  object: "session.deleted";
  deleted: boolean;
  generations?: number[];
}

/**
 * How a turn is to be taken; what is left out is the server's default.
 *
 * `max_tokens: 0` reads and learns without a reply; `learn: false` answers and leaves no trace; `if_version` refuses
 * the turn where somebody else was faster.
 */
export interface TurnFields {
  learn?: boolean;
  max_tokens?: number;
  temperature?: number;
  top_p?: number;
  seed?: number | null;
  stop?: string[];
  if_version?: number | null;
  timeout_s?: number;
}

/** Tokens of a turn. */
export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
}

/** One level after a turn; `drift` is its distance from the initial state over the initial norm. */
export interface LevelReport {
  name: string;
  scope: string;
  updates: number;
  norm: number;
  drift: number;
}

/** What a turn did to memory. `surprise` is in nats per token of the message, before learning from it. */
export interface MemoryReport {
  version: number;
  generation: number;
  learned: boolean;
  surprise: number;
  levels: LevelReport[];
}

/** Durations of a turn. */
export interface Timing {
  queue_ms: number;
  first_token_ms: number;
  total_ms: number;
  commit_ms: number;
}

/** A message and its reply, durable. */
export interface Turn {
  id: string;
  object: "turn";
  session_id: string;
  index: number;
  created_at: string;
  message: string;
  reply: string;
  finish_reason: "stop" | "length";
  usage: Usage;
  memory: MemoryReport;
  timing: Timing;
}

/** The turn was accepted. */
export interface TurnCreated {
  type: "turn.created";
  turn_id: string;
}

/** A piece of the reply, never half a character. */
export interface TurnToken {
  type: "turn.token";
  turn_id: string;
  index: number;
  text: string;
}

/**
 * Made by this client, not by the server: the turn is told again from its beginning, forget its text so far.
 *
 * Comes where the connection was lost after a part of the reply had been yielded; `reason` says how.
 */
export interface TurnRestarted {
  type: "turn.restarted";
  reason: string;
}

/** The last event: memory, transcript and idempotency key are durable. */
export interface TurnCompleted {
  type: "turn.completed";
  turn: Turn;
}

/** The last event of a turn that was stopped; the memory is that of before. */
export interface TurnCancelled {
  type: "turn.cancelled";
  turn_id: string | null;
}

export type TurnEvent = TurnCreated | TurnToken | TurnRestarted | TurnCompleted | TurnCancelled;

/** One level of a memory, seen from outside. */
export interface LevelView {
  name: string;
  scope: "session" | "tenant" | "global";
  clock: string;
  updates: number;
  parameters: number;
  bytes: number;
  norm: number;
  drift: number;
}

/** How surprising the message of the turn with that index was, in nats. */
export interface Surprise {
  turn: number;
  value: number;
}

/** What a session's memory looks like from outside. */
export interface Memory {
  version: number;
  generation: number;
  levels: LevelView[];
  surprise: Surprise[];
}

/** A version of the memory that can be gone back to; no `turn_id` where a consolidation made it. */
export interface Version {
  version: number;
  turn_id: string | null;
  created_at: string;
  bytes: number;
}

/** A figure before and after, and the limit that it had to keep. */
export interface GateCheck {
  before: number;
  after: number;
  limit: number;
  passed: boolean;
}

/** One try to fold contributing sessions into a new generation. */
export interface Consolidation {
  id: string;
  object: "consolidation";
  status: "running" | "accepted" | "rejected" | "empty" | "failed";
  from_generation: number;
  to_generation: number | null;
  num_sessions: number;
  num_turns: number;
  gate: Record<string, GateCheck>;
  reason: string | null;
  started_at: string;
  finished_at: string | null;
}

/** A version of the levels that a tenant's sessions share; 0 is the checkpoint alone. */
export interface Generation {
  generation: number;
  created_at: string | null;
  active: boolean;
  consolidation_id: string | null;
}

/** A session that spoiled candidates for a generation; `excluded`: it is tried no more until it is let out. */
export interface SetAside {
  session_id: string;
  object: "quarantine";
  times: number;
  excluded: boolean;
  reason: string;
  consolidation_id: string;
  at: string;
}
