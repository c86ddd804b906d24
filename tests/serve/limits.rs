//! What is refused, and what happens to clients that go away and to a server that is told to stop.

use crate::client::{JSON, chat, get, post, receive, send};
use crate::server::Running;
use serde_json::{Value, json};
use sorft_native::serve::Settings;
use std::io::Read;
use std::time::Duration;

/// A body whose answer has some 450 tokens: the tiny model seldom ends one before.
fn long(more: Value) -> Value {
    let mut body = chat("a long answer", json!({"max_tokens": 450, "temperature": 0.0}));
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[test]
fn errors_name_the_field_and_what_was_expected() {
    let server = Running::start(Settings { max_body_bytes: 10_000, max_answer_tokens: 500, cache_tokens: 1024, ..Default::default() });
    let many = json!(vec!["a"; 17]);
    for (more, field, message) in [
        (json!({"temperature": "hot"}), "temperature", "temperature: expected a number, found the text \"hot\""),
        (json!({"temperature": -1}), "temperature", "temperature: expected 0 for the likeliest token, or a number of at least 0.000001"),
        (json!({"top_p": 0}), "top_p", "top_p: expected a number above 0 and up to 1"),
        (json!({"min_p": 2}), "min_p", "min_p: expected a number from 0 to 1"),
        (json!({"top_k": -1}), "top_k", "top_k: expected a whole number from 0"),
        (json!({"n": 0}), "n", "n: expected a whole number from 1 to 128, found 0"),
        (json!({"n": 1.5}), "n", "found 1.5"),
        (json!({"max_tokens": 501}), "max_tokens", "from 1 to 500, found 501"),
        (json!({"max_completion_tokens": true}), "max_completion_tokens", "found true"),
        (json!({"seed": "x"}), "seed", "seed: expected a whole number of 64 bits"),
        (json!({"stop": [1]}), "stop", "none empty, found 1"),
        (json!({"stop": many}), "stop", "found a list of 17"),
        (json!({"stop": ""}), "stop", "one is empty"),
        (json!({"stream": 1}), "stream", "stream: expected true or false, found 1"),
        (json!({"stream_options": {}}), "stream_options", "needs \"stream\": true"),
        (json!({"stream": true, "stream_options": {"x": 1}}), "stream_options.x", "no field of this request"),
        (json!({"logprobs": 1}), "logprobs", "expected true or false"),
        (json!({"top_logprobs": 2}), "top_logprobs", "needs \"logprobs\": true"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs", "from 0 to 20"),
        (json!({"messages": []}), "messages", "expected a list of messages, at least one"),
        (json!({"messages": ["hi"]}), "messages[0]", "expected an object with role and content"),
        (json!({"messages": [{"role": "robot", "content": ""}]}), "messages[0].role", "found the text \"robot\""),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content", "expected a text"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            "messages[0].content[0]",
            "expected {\"type\": \"text\"",
        ),
        (json!({"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}), "messages[0].tool_calls", "does not support it"),
        (json!({"tools": [{}]}), "tools", "does not support it"),
        (json!({"frequency_penalty": 1}), "frequency_penalty", "does not support it"),
        (json!({"response_format": {"type": "json_object"}}), "response_format", "does not support it"),
        (json!({"temprature": 1}), "temprature", "no field of this request"),
        (json!({"messages": [{"role": "user", "content": "x".repeat(600)}]}), "messages", "the model's context of 512"),
    ] {
        let response = post(server.address, "/v1/chat/completions", &chat("hi", more.clone()));
        let error = &response.json()["error"];
        assert_eq!((response.status, &error["param"], &error["type"]), (400, &json!(field), &json!("invalid_request_error")), "{more}");
        assert!(error["message"].as_str().unwrap().contains(message), "{more}: {error}");
    }
    for (body, field) in [(json!({"prompt": [301]}), "prompt"), (json!({"prompt": ["a", [1, -1]]}), "prompt[1]"), (json!({}), "prompt")] {
        let response = post(server.address, "/v1/completions", &body);
        assert_eq!((response.status, &response.json()["error"]["param"]), (400, &json!(field)), "{body}");
    }
    // What means nothing here is taken, as other clients send it.
    let neutral = json!({"user": "me", "presence_penalty": 0, "tools": [], "response_format": {"type": "text"}, "stop": null, "max_tokens": 1,
        "messages": [{"role": "developer", "content": "be brief"}, {"role": "user", "content": [{"type": "text", "text": "hi"}], "name": "me"}]});
    assert_eq!(post(server.address, "/v1/chat/completions", &chat("", neutral)).status, 200);
    let response = post(server.address, "/v1/chat/completions", &chat("hi", json!({"model": "gpt-4"})));
    assert_eq!((response.status, &response.json()["error"]["code"]), (404, &json!("model_not_found")));
    let response = post(server.address, "/v1/chat/completions", &chat("hi", json!({"n": 20, "max_tokens": 500})));
    assert!(response.status == 400 && response.body.contains("of the cache, which holds 1024"), "{response:?}");
    server.wait_until_idle();
}

#[test]
fn what_is_no_request_is_refused() {
    let server = Running::start(Settings { max_body_bytes: 10_000, ..Default::default() });
    let raw = |headers: &str, body: &[u8]| receive(send(server.address, "POST", "/v1/chat/completions", headers, body));
    for body in [&b"{\"messages\": ["[..], b"", b"[1]", b"\xff\xfe", b"null", &b"[".repeat(5000)] {
        let response = raw(JSON, body);
        assert_eq!((response.status, &response.json()["error"]["code"]), (400, &json!("invalid_json")));
    }
    assert_eq!(raw(JSON, &b" ".repeat(20_000)).status, 413);
    assert_eq!(raw("", b"{}").status, 415);
    assert_eq!(raw("Content-Type: text/plain\r\n", b"{}").status, 415);
    let nowhere = get(server.address, "/v2/models");
    assert_eq!((nowhere.status, &nowhere.json()["error"]["code"]), (404, &json!("not_found")));
    let wrong = get(server.address, "/v1/completions");
    assert_eq!(wrong.status, 405);
    assert!(wrong.body.contains("does not take GET"));
    server.wait_until_idle();
}

#[test]
fn the_key_is_asked_for() {
    let server = Running::start(Settings { api_key: Some("secret".into()), ..Default::default() });
    let ask = |headers: &str| receive(send(server.address, "GET", "/v1/models", headers, b"")).status;
    assert_eq!(ask("Authorization: Bearer secret\r\n"), 200);
    for headers in ["", "Authorization: Bearer wrong\r\n", "Authorization: secret\r\n", "Authorization: Bearer \r\n"] {
        assert_eq!(ask(headers), 401, "{headers:?}");
    }
}

#[test]
fn a_client_that_hangs_up_leaves_nothing() {
    let server = Running::start(Settings { max_batch: 4, ..Default::default() });
    for round in 0..3 {
        let hung_up = (0..10).map(|i| {
            let body = long(json!({"stream": i % 2 == 0, "n": 1 + i % 3}));
            let mut stream = send(server.address, "POST", "/v1/chat/completions", JSON, body.to_string().as_bytes());
            // Some hang up in the middle of their answer, some while they wait for it.
            if i == 0 && round == 0 {
                stream.read_exact(&mut [0; 400]).unwrap();
            }
            stream
        });
        let streams: Vec<_> = hung_up.collect();
        server.wait_for(|health| health["requests"].as_u64() >= Some(5));
        drop(streams);
        let answer = post(server.address, "/v1/chat/completions", &chat("still there?", json!({"max_tokens": 5, "seed": 1})));
        assert_eq!(answer.status, 200);
        server.wait_until_idle();
    }
}

#[test]
fn a_full_server_says_when_to_come_again() {
    let server = Running::start(Settings { max_requests: 2, max_batch: 1, ..Default::default() });
    let busy: Vec<_> = (0..2)
        .map(|_| send(server.address, "POST", "/v1/chat/completions", JSON, long(json!({"stream": true, "n": 64})).to_string().as_bytes()))
        .collect();
    server.wait_for(|health| health["requests"] == 2);
    let refused = post(server.address, "/v1/chat/completions", &chat("me too", json!({})));
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("2")));
    assert_eq!(refused.json()["error"]["code"], "queue_full");
    drop(busy);
    server.wait_until_idle();
    assert_eq!(post(server.address, "/v1/chat/completions", &chat("me too", json!({"max_tokens": 1}))).status, 200);
}

#[test]
fn a_stopping_server_ends_what_it_began() {
    let mut server = Running::start(Settings { max_batch: 4, ..Default::default() });
    let asked = send(server.address, "POST", "/v1/chat/completions", JSON, long(json!({"stream": true})).to_string().as_bytes());
    server.wait_for(|health| health["cached_tokens"] != 0);
    server.stop();
    let answer = receive(asked);
    assert!(answer.body.ends_with("data: [DONE]\n\n"), "{}", answer.body);
    server.join();
    assert!(std::net::TcpStream::connect(server.address).is_err());
}

#[test]
fn after_the_grace_period_the_rest_is_told() {
    let mut server = Running::start(Settings { max_batch: 1, grace: Duration::from_millis(50), ..Default::default() });
    let body = |stream: bool| long(json!({"stream": stream, "n": 128})).to_string();
    let streamed = send(server.address, "POST", "/v1/chat/completions", JSON, body(true).as_bytes());
    let whole = send(server.address, "POST", "/v1/chat/completions", JSON, body(false).as_bytes());
    server.wait_for(|health| health["requests"] == 2);
    server.stop();
    let (streamed, whole) = (receive(streamed), receive(whole));
    assert!(streamed.body.ends_with("\"code\":\"stopping\"}}\n\n"), "{}", streamed.body);
    assert_eq!((whole.status, whole.header("retry-after")), (503, Some("10")));
    server.join();
}
