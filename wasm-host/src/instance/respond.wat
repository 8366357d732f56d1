;; Calls the callbacks for a response that came whole, one after the other. `step` is which of them runs; `stop` is set by
;; the host where the second must not follow the first. Returns which of them was the last, and what it said.
(module $leno_together
  (import "plugin" "proxy_on_response_headers" (func $headers (param i32 i32 i32) (result i32)))
  (import "plugin" "proxy_on_response_body" (func $body (param i32 i32 i32) (result i32)))
  (global $step (export "step") (mut i32) (i32.const 0))
  (global $stop (export "stop") (mut i32) (i32.const 0))
  (func (export "respond") (param $context i32) (param $count i32) (param $size i32)
    (result i32 i32) (local $action i32)
    (global.set $step (i32.const 0))
    (global.set $stop (i32.const 0))
    (local.set $action (call $headers (local.get $context) (local.get $count) (i32.const 0)))
    (if (i32.or (local.get $action) (global.get $stop))
      (then (return (i32.const 0) (local.get $action))))
    (global.set $step (i32.const 1))
    (i32.const 1)
    (call $body (local.get $context) (local.get $size) (i32.const 1))))
