//! The similarity of patches, as SWE-RL's reward has it, on patches of several lengths: the whole comparison, and one with the oracle's
//! index already made, as the answers of a group share it. `tests/difflib/speed.py` measures CPython beside it on real patches.

use std::fmt::Write as _;
use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sorft_native::data::difflib::{CharIndex, Scratch};
use sorft_native::data::random::Keyed;

/// Two patches of about `chars` characters: the same hunks with other inserted lines here and there.
fn patches(chars: usize) -> (String, String) {
    let words = ["self", "value", "return", "if", "not", "None", "result", "=", "path", "(", ")", "data", ".", "items", "for", "in"];
    let mut random = Keyed::new(1, &["patches"]);
    let mut line = |prefix: &str| {
        let words: Vec<&str> = (0..4 + random.below(6)).map(|_| words[random.below(words.len())]).collect();
        format!("{prefix}    {}\n", words.join(" "))
    };
    let (mut a, mut b) = (String::new(), String::new());
    for i in 0.. {
        if b.len() >= chars {
            break;
        }
        let shared = [line(" "), line(" "), line(" "), line("-")].concat();
        let (mine, theirs) = (line("+"), line("+"));
        let _ = write!(a, "@@ -{i},7 +{i},7 @@\n{shared}{}", if i % 3 == 0 { &theirs } else { &mine });
        let _ = write!(b, "@@ -{i},7 +{i},7 @@\n{shared}{theirs}");
    }
    (a, b)
}

fn ratios(c: &mut Criterion) {
    let mut group = c.benchmark_group("patch_similarity");
    for chars in [700, 2400, 6000, 12_000, 50_000] {
        let (a, b) = patches(chars);
        group.throughput(Throughput::Elements(chars as u64));
        let mut scratch = Scratch::default();
        group.bench_function(BenchmarkId::new("pair", chars), |bench| {
            bench.iter(|| CharIndex::new(black_box(b.as_bytes())).ratio(black_box(a.as_bytes()), &mut scratch));
        });
        let index = CharIndex::new(b.as_bytes());
        group.bench_function(BenchmarkId::new("indexed", chars), |bench| bench.iter(|| index.ratio(black_box(a.as_bytes()), &mut scratch)));
    }
    // What costs CPython the cube of the length: two runs of one character; and matches of one character, one after another.
    let n = 20_000;
    let every_other = |shift: u32| {
        (0..n as u32 / 2).flat_map(|i| [char::from_u32(0x4E00 + i), char::from_u32(0x20 + shift)]).flatten().collect::<String>()
    };
    for (name, a, b) in [("one_character", "x".repeat(n), "x".repeat(n - 1)), ("alternating", every_other(1), every_other(2))] {
        let mut scratch = Scratch::default();
        group.bench_function(BenchmarkId::new(name, n), |bench| {
            bench.iter(|| CharIndex::new(b.as_bytes()).ratio(a.as_bytes(), &mut scratch))
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
    targets = ratios
}
criterion_main!(benches);
