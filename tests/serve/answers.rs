//! What is answered: the bits that `sample` gives, whole and streamed.

use crate::client::{chat, get, post};
use crate::server::{Running, template, tokenizer, transformer};
use serde_json::{Value, json};
use sorft_native::model::chat::Message;
use sorft_native::model::generate::{Completion, FinishReason, SamplingParams, generate};
use sorft_native::serve::Settings;

/// What `sample` gives to a chat with one message.
fn sampled(text: &str, params: &SamplingParams) -> Vec<Completion> {
    let tokenizer = tokenizer();
    let messages = [Message { role: "user".into(), content: text.into() }];
    let ids = tokenizer.encode(&template().render(&messages, true).unwrap(), false).unwrap();
    generate(&transformer(), Some(&tokenizer), &[ids], params, 1, &mut |_| true).unwrap()
}

fn bits(content: &Value) -> Vec<u32> {
    content.as_array().unwrap().iter().map(|t| (t["logprob"].as_f64().unwrap() as f32).to_bits()).collect()
}

#[test]
fn answers_are_those_of_sample_whatever_else_is_asked() {
    let server = Running::start(Settings { max_batch: 5, ..Default::default() });
    let ask = |i: u64| {
        let text = format!("question {i} {}", "x".repeat(7 * i as usize));
        let params = SamplingParams {
            n: 1 + i as usize % 3,
            max_new_tokens: 30 + i as usize,
            temperature: [1.0, 0.7, 0.0][i as usize % 3],
            top_p: [1.0, 0.9][i as usize % 2],
            top_k: [0, 40][i as usize % 2],
            min_p: [0.0, 0.01][i as usize % 2],
            seed: u64::MAX - i,
            stop: vec!["ab".into(), "\n".into()],
            ..Default::default()
        };
        let body = chat(
            &text,
            json!({"n": params.n, "max_completion_tokens": params.max_new_tokens, "temperature": params.temperature, "top_p": params.top_p,
                "top_k": params.top_k, "min_p": params.min_p, "seed": params.seed, "stop": params.stop, "logprobs": true, "top_logprobs": 2}),
        );
        let answer = post(server.address, "/v1/chat/completions", &body).json();
        let want = sampled(&text, &params);
        let choices = answer["choices"].as_array().unwrap();
        assert_eq!(choices.len(), want.len());
        for (choice, want) in choices.iter().zip(&want) {
            assert_eq!(choice["index"], want.index);
            assert_eq!(choice["message"], json!({"role": "assistant", "content": want.text, "refusal": null}));
            assert_eq!(choice["finish_reason"], if want.finish_reason == FinishReason::Length { "length" } else { "stop" });
            let content = &choice["logprobs"]["content"];
            assert_eq!(bits(content), want.logprobs.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
            for token in content.as_array().unwrap() {
                let top = token["top_logprobs"].as_array().unwrap();
                assert!(top.len() == 2 && top[0]["logprob"].as_f64() >= top[1]["logprob"].as_f64());
                assert!(params.temperature > 0.0 || top[0]["token"] == token["token"], "greedy takes the likeliest");
            }
        }
        let tokens: usize = want.iter().map(|c| c.ids.len()).sum();
        let usage = &answer["usage"];
        assert_eq!(usage["completion_tokens"], tokens);
        assert_eq!(usage["total_tokens"].as_u64().unwrap(), usage["prompt_tokens"].as_u64().unwrap() + tokens as u64);
        assert_eq!(answer["seed"], params.seed);
    };
    std::thread::scope(|s| (0..12).for_each(|i| drop(s.spawn(move || ask(i)))));
    server.wait_until_idle();
}

/// Texts, tokens' log-probabilities and reasons of a stream's choices.
fn collect(events: &[&str], n: usize) -> Vec<(String, Vec<f64>, String)> {
    let mut out = vec![(String::new(), Vec::new(), String::new()); n];
    for event in events {
        let chunk: Value = serde_json::from_str(event).unwrap();
        for choice in chunk["choices"].as_array().unwrap() {
            let (text, logprobs, reason) = &mut out[choice["index"].as_u64().unwrap() as usize];
            assert!(reason.is_empty(), "a chunk after the end: {event}");
            let piece = choice["delta"]["content"].as_str().or(choice["text"].as_str()).unwrap_or_default();
            assert!(!text.is_empty() || choice["delta"]["role"] != "user");
            text.push_str(piece);
            for token in choice["logprobs"]["content"].as_array().into_iter().flatten() {
                logprobs.push(token["logprob"].as_f64().unwrap());
            }
            logprobs.extend(choice["logprobs"]["token_logprobs"].as_array().into_iter().flatten().filter_map(Value::as_f64));
            reason.push_str(choice["finish_reason"].as_str().unwrap_or_default());
        }
    }
    out
}

#[test]
fn a_stream_is_the_whole_answer_in_pieces() {
    let server = Running::start(Settings::default());
    let body = chat("hello", json!({"n": 3, "max_tokens": 60, "seed": -3, "stop": "q", "logprobs": true}));
    let whole = post(server.address, "/v1/chat/completions", &body).json();
    let mut streaming = body.clone();
    streaming["stream"] = json!(true);
    streaming["stream_options"] = json!({"include_usage": true});
    let response = post(server.address, "/v1/chat/completions", &streaming);
    assert_eq!((response.status, response.header("content-type")), (200, Some("text/event-stream")));
    let events = response.events();
    let (done, events) = events.split_last().unwrap();
    assert_eq!(*done, "[DONE]");
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!((&last["choices"], &last["usage"]), (&json!([]), &whole["usage"]));
    let first: Value = serde_json::from_str(events[0]).unwrap();
    assert_eq!((&first["object"], &first["choices"][0]["delta"]["role"]), (&json!("chat.completion.chunk"), &json!("assistant")));
    for (choice, (text, logprobs, reason)) in whole["choices"].as_array().unwrap().iter().zip(collect(events, 3)) {
        assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&json!(text), &json!(reason)));
        let want: Vec<f64> = choice["logprobs"]["content"].as_array().unwrap().iter().filter_map(|t| t["logprob"].as_f64()).collect();
        assert_eq!(logprobs, want);
    }
}

#[test]
fn completions_take_texts_and_ids() {
    let server = Running::start(Settings::default());
    let ids = tokenizer().encode("two", true).unwrap();
    let body = json!({"prompt": ["one", "two"], "n": 2, "seed": 5, "max_tokens": 12, "logprobs": 1});
    let answer = post(server.address, "/v1/completions", &body).json();
    assert_eq!((&answer["object"], answer["choices"].as_array().unwrap().len()), (&json!("text_completion"), 4));
    let by_ids = post(server.address, "/v1/completions", &json!({"prompt": ids, "n": 2, "seed": 5, "max_tokens": 12})).json();
    for i in 0..2 {
        assert_eq!(answer["choices"][2 + i]["text"], by_ids["choices"][i]["text"]);
    }
    let logprobs = &answer["choices"][0]["logprobs"];
    let lists = ["tokens", "token_logprobs", "top_logprobs", "text_offset"].map(|list| logprobs[list].as_array().unwrap().len());
    assert_eq!(lists, [lists[0]; 4]);
    let streamed = post(server.address, "/v1/completions", &{
        let mut body = body.clone();
        body["stream"] = json!(true);
        body
    });
    let events = streamed.events();
    for (choice, (text, logprobs, reason)) in answer["choices"].as_array().unwrap().iter().zip(collect(&events[..events.len() - 1], 4)) {
        assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(text), &json!(reason)));
        assert_eq!(&json!(logprobs), &choice["logprobs"]["token_logprobs"]);
    }
}

#[test]
fn requests_without_a_seed_get_one_that_is_told() {
    let server = Running::start(Settings { seed: 7, ..Default::default() });
    let ask = |more: Value| post(server.address, "/v1/chat/completions", &chat("hello", more)).json();
    let (first, second) = (ask(json!({"max_tokens": 20})), ask(json!({"max_tokens": 20})));
    assert_ne!(first["seed"], second["seed"]);
    assert_ne!(first["choices"][0]["message"], second["choices"][0]["message"]);
    assert_ne!(first["id"], second["id"]);
    let again = ask(json!({"max_tokens": 20, "seed": first["seed"]}));
    assert_eq!(again["choices"], first["choices"]);
}

#[test]
fn models_are_listed() {
    let server = Running::start(Settings::default());
    let list = get(server.address, "/v1/models").json();
    assert_eq!((&list["object"], &list["data"][0]["id"], &list["data"][0]["object"]), (&json!("list"), &json!("tiny"), &json!("model")));
    assert_eq!(get(server.address, "/v1/models/tiny").json()["max_model_len"], 512);
    let other = get(server.address, "/v1/models/other/one");
    assert_eq!((other.status, &other.json()["error"]["code"]), (404, &json!("model_not_found")));
}
