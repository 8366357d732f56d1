//! The names of what plugins can be allowed: functions and callbacks of the ABI, functions of WASI.

/// Of Proxy-Wasm 0.1.0, 0.2.0 and 0.2.1, without `proxy_`.
const PROXY: [&str; 69] = [
    "add_header_map_value",
    "call_foreign_function",
    "clear_route_cache",
    "close_stream",
    "continue_request",
    "continue_response",
    "continue_stream",
    "define_metric",
    "dequeue_shared_queue",
    "done",
    "enqueue_shared_queue",
    "get_buffer_bytes",
    "get_buffer_status",
    "get_configuration",
    "get_current_time_nanoseconds",
    "get_header_map_pairs",
    "get_header_map_size",
    "get_header_map_value",
    "get_log_level",
    "get_metric",
    "get_property",
    "get_shared_data",
    "get_status",
    "grpc_call",
    "grpc_cancel",
    "grpc_close",
    "grpc_send",
    "grpc_stream",
    "http_call",
    "increment_metric",
    "log",
    "on_configure",
    "on_context_create",
    "on_delete",
    "on_done",
    "on_downstream_connection_close",
    "on_downstream_data",
    "on_foreign_function",
    "on_grpc_close",
    "on_grpc_receive",
    "on_grpc_receive_initial_metadata",
    "on_grpc_receive_trailing_metadata",
    "on_http_call_response",
    "on_log",
    "on_memory_allocate",
    "on_new_connection",
    "on_queue_ready",
    "on_request_body",
    "on_request_headers",
    "on_request_trailers",
    "on_response_body",
    "on_response_headers",
    "on_response_trailers",
    "on_tick",
    "on_upstream_connection_close",
    "on_upstream_data",
    "on_vm_start",
    "record_metric",
    "register_shared_queue",
    "remove_header_map_value",
    "replace_header_map_value",
    "resolve_shared_queue",
    "send_local_response",
    "set_buffer_bytes",
    "set_effective_context",
    "set_header_map_pairs",
    "set_property",
    "set_shared_data",
    "set_tick_period_milliseconds",
];
/// How the names of `wasi_snapshot_preview1` begin.
const WASI: [&str; 10] =
    ["args_", "clock_", "environ_", "fd_", "path_", "poll_", "proc_", "random_", "sched_", "sock_"];

/// Whether there is something of that name: a misspelt one would silently allow nothing.
pub(super) fn check(name: &str) -> Result<(), String> {
    let lower = name.len() <= 64
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'_' || byte.is_ascii_digit());
    let known = match name.strip_prefix("proxy_") {
        Some(name) => PROXY.contains(&name),
        None => WASI.iter().any(|prefix| name.starts_with(prefix)),
    };
    (lower && known).then_some(()).ok_or_else(|| {
        format!(
            "`{}` is no function of Proxy-Wasm (`proxy_log`) or of WASI (`fd_write`)",
            name.escape_debug()
        )
    })
}
