"""The policy core: it decides, and nothing else.

Rules for editing this package
------------------------------
1. Standard library only. No clock, no randomness, no I/O, no device, no thread. Time arrives as
   `now_ns`; randomness arrives as `draw(purpose, name, k) -> int`, pure and seeded, from outside.
2. No set is iterated and no builtin hash decides anything: every order is total, `(key, arrival,
   id)`, so that the same inputs give the same decisions in any process.
3. A decision is a frozen value (`plan.Plan`). A machine performs it and reports what happened
   (`plan.Outcome`). True output lengths never enter this package.
4. Memory changes in one place (`memory.memory.Memory`), request states in one table (`request`), and
   every store has a conservation law that raises (`integrity`).

Theory of operation
-------------------
`Scheduler.add / cancel / schedule / update` is the whole interface. It is thin over an engine
(`engines/`), which decides: `ranked` (one order over all requests, the thirteen rules) or `vllm_033`
(vLLM 0.3.3 under FCFS, decision for decision). `schedule` reserves blocks and hands out a plan;
`update` folds in what happened. An engine says until when its plan holds (`engines.base.Until`);
until then nothing is decided again: the same plan object is handed out, and token counts of decoding
requests follow from one step counter (`request.DecodeClock`).
"""
