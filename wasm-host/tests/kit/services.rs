//! What is around the proxy: the origin of exchanges and the service that plugins call.

use leno_wasm_host::{Headers, HttpCallResponse};

use crate::{
    case::Received,
    embedder::{Call, text},
    exchange::{Item, header},
    origin,
    proxy::{Event, Proxy, pair, strings},
};

pub const NO_UPSTREAM: &str = "upstream connect error or disconnect/reset before headers. reset reason: \
                               connection termination";

impl Proxy<'_> {
    pub fn send_upstream(&mut self, x: usize) {
        let last = self.filters.len().checked_sub(1);
        let exchange = &mut self.exchanges[x];
        if exchange.done || exchange.answered || exchange.upstream_sent {
            return;
        }
        let Some(headers) = exchange.upstream_head.clone() else { return };
        let Some(method) = header(&headers, ":method").map(text) else {
            return self.own_answer(x, 503, "missing required header: :method", last);
        };
        if let Some((name, _)) = headers.iter().find(|(name, _)| name.contains(&b' ')) {
            let body = format!("invalid header name: {}", text(name));
            return self.own_answer(x, 503, &body, last);
        }
        if !exchange.upstream_ended {
            return;
        }
        exchange.upstream_sent = true;
        let path = header(&headers, ":path").map(text).unwrap_or_default();
        let chunked = header(&headers, "content-length").is_none();
        let received = Received {
            method: method.clone(),
            path: path.clone(),
            headers: sent_headers(&headers),
            body: Some(text(&exchange.upstream_body)),
            trailers: if chunked { strings(&exchange.upstream_trailers) } else { Vec::new() },
            complete: true,
        };
        self.origin.push(received);
        self.answer_of_origin(x, &method, &path);
    }

    fn answer_of_origin(&mut self, x: usize, method: &str, path: &str) {
        let (answer, chunk_delay) = origin::answer("origin", method, path);
        if answer.reset {
            return self.schedule(answer.delay, Event::OriginReset(x));
        }
        let mut at = answer.delay;
        let mut items = vec![Item::Head(answer.headers, answer.bodiless)];
        if !answer.bodiless {
            for (index, chunk) in answer.chunks.into_iter().enumerate() {
                if index > 0 {
                    self.schedule(at, Event::Origin(x, std::mem::take(&mut items)));
                    at += chunk_delay;
                }
                items.push(Item::Data(chunk, false));
            }
            items.push(match answer.trailers {
                trailers if trailers.is_empty() => Item::Data(Vec::new(), true),
                trailers => Item::Trailers(trailers),
            });
        }
        self.schedule(at, Event::Origin(x, items));
    }

    pub fn call_service(&mut self, at: usize, call: Call) {
        let of = |name: &str| header(&call.headers, name).map(text).unwrap_or_default();
        let (method, path) = (of(":method"), of(":path"));
        let mut headers = sent_headers(&call.headers);
        if !call.body.is_empty() {
            headers.push(("content-length".to_owned(), call.body.len().to_string()));
        }
        self.callouts.push(Received {
            method: method.clone(),
            path: path.clone(),
            headers,
            body: Some(text(&call.body)),
            trailers: Vec::new(),
            complete: true,
        });
        let (answer, _) = origin::answer("callout", &method, &path);
        // The callout answers one after the other, each after a millisecond.
        let waiting = self.events.values().filter(|event| matches!(event, Event::Answer(..)));
        let wait = 1 + waiting.count() as u64;
        let timeout = call.timeout.as_millis() as u64;
        let (after, response) = if answer.delay > timeout {
            (timeout, synthesised("504", "upstream request timeout"))
        } else if answer.reset {
            (answer.delay, synthesised("503", NO_UPSTREAM))
        } else {
            let mut headers = answer.headers;
            headers.push(pair("x-envoy-upstream-service-time", "0"));
            let body = answer.chunks.concat();
            (answer.delay + wait, HttpCallResponse { headers, body, trailers: answer.trailers })
        };
        self.schedule(after, Event::Answer(at, call.token, response));
    }
}

fn synthesised(status: &str, body: &str) -> HttpCallResponse {
    let headers = vec![
        pair(":status", status),
        pair("content-length", &body.len().to_string()),
        pair("content-type", "text/plain"),
    ];
    HttpCallResponse { headers, body: body.as_bytes().to_vec(), trailers: Vec::new() }
}

/// Headers as an origin sees them: the host by its name, no other pseudo headers.
fn sent_headers(headers: &Headers) -> Vec<(String, String)> {
    strings(headers)
        .into_iter()
        .map(|(name, value)| match &name[..] {
            ":authority" => ("host".to_owned(), value),
            _ => (name, value),
        })
        .filter(|(name, _)| !name.starts_with(':'))
        .collect()
}
