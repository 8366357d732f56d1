//! The origin of the kit: what it answers is said by the query of the path.

use leno_wasm_host::Headers;

/// An answer, in the steps in which it comes. Times are milliseconds after the request.
#[derive(Default)]
pub struct Answer {
    pub delay: u64,
    pub reset: bool,
    pub headers: Headers,
    /// Whether there is a body at all.
    pub bodiless: bool,
    pub chunks: Vec<Vec<u8>>,
    pub trailers: Headers,
}

/// Milliseconds between chunks, unless the query says otherwise.
const CHUNK_DELAY: u64 = 40;

fn pair(name: &str, value: &str) -> (Vec<u8>, Vec<u8>) {
    (name.as_bytes().to_vec(), value.as_bytes().to_vec())
}

/// `tag` is `origin` or `callout`.
pub fn answer(tag: &str, method: &str, target: &str) -> (Answer, u64) {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let options: Vec<(&str, &str)> = query
        .split('&')
        .filter(|option| !option.is_empty())
        .map(|option| option.split_once('=').unwrap_or((option, "")))
        .collect();
    let option = |name: &str| options.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
    let number = |name: &str| option(name).and_then(|value| value.parse::<u64>().ok());
    let status = number("status").unwrap_or(200);
    let mut body = format!("{tag}: {method} {path}\n").into_bytes();
    if let Some(text) = option("body") {
        body = text.as_bytes().to_vec();
    }
    if let Some(size) = number("size") {
        body = vec![b'a'; size as usize];
    }
    let mut headers = vec![
        pair(":status", &status.to_string()),
        pair("content-type", "text/plain"),
        pair("x-origin", tag),
    ];
    let trailers: Headers = options
        .iter()
        .filter(|(key, _)| *key == "trailer")
        .map(|(_, value)| value.split_once(':').unwrap_or((value, "")))
        .map(|(name, value)| pair(name, value))
        .collect();
    let bodiless = method == "HEAD" || matches!(status, 204 | 304);
    let chunks = option("chunks").map(|chunks| chunks.split('|').map(|c| c.as_bytes().to_vec()));
    let framed = chunks.is_none() && trailers.is_empty();
    if bodiless || framed {
        headers.push(pair("content-length", &body.len().to_string()));
    } else {
        headers.push(pair("transfer-encoding", "chunked"));
    }
    let answer = Answer {
        delay: number("delay").unwrap_or(0),
        reset: option("reset").is_some(),
        headers,
        bodiless,
        chunks: chunks.map_or_else(|| vec![body], Iterator::collect),
        trailers,
    };
    (answer, number("cdelay").unwrap_or(CHUNK_DELAY))
}
