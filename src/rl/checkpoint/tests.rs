//! Tests of checkpoints.

use super::*;
use crate::tensor::ops::adamw::codes::Coded;

/// Three tensors; the moments of the last are coded.
fn params() -> Vec<Entry> {
    [("b.weight", vec![2, 3], false), ("a.bias", vec![4], false), ("c.weight", vec![1, 257], true)]
        .map(|(n, shape, coded)| Entry { info: ParamInfo { name: n.into(), shape, decay: true }, coded })
        .to_vec()
}

fn numbers(name: &str) -> Result<TensorState> {
    let n = params().iter().find(|e| e.info.name == name).unwrap().info.shape.iter().product();
    let part = |p: usize, n: usize| (0..n).map(|i| (i * 10 + p) as f32 + 0.1).collect::<Vec<f32>>();
    let moment = |p: usize| match name {
        "c.weight" => Moment::Coded(Coded { codes: (0..n).map(|i| (i * 7 + p) as u8).collect(), scales: part(p, 2) }),
        _ => Moment::F32(part(p, n)),
    };
    Ok(TensorState { weight: part(0, n), first: moment(1), second: moment(2) })
}

fn state(step: u64) -> State {
    State { step, stage: 1, stage_step: 2, cursor: 77, updates: 5, ..State::default() }
}

#[test]
fn reads_back_what_was_written_and_writes_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let a = save(&dir.path().join("a"), &state(7), &params(), &mut numbers, 0).unwrap();
    let b = save(&dir.path().join("b"), &state(7), &params(), &mut numbers, 0).unwrap();
    for name in [STATE, TENSORS, MANIFEST] {
        assert_eq!(fs::read(a.join(name)).unwrap(), fs::read(b.join(name)).unwrap());
    }
    let found = Checkpoint::latest(&dir.path().join("a"), &mut |w| panic!("{w}")).unwrap().unwrap();
    assert_eq!((found.state.step, found.state.cursor, found.state.updates), (7, 77, 5));
    for p in params() {
        assert_eq!(found.read(&p.info).unwrap(), numbers(&p.info.name).unwrap());
    }
    // Other readers know the names and dtypes.
    let bytes = fs::read(a.join(TENSORS)).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let view = |name: &str| file.tensor(name).map(|t| (t.dtype(), t.shape().to_vec())).unwrap();
    assert_eq!(view("second/c.weight"), (safetensors::Dtype::U8, vec![1, 257]));
    assert_eq!(view("second_scale/c.weight"), (safetensors::Dtype::F32, vec![1, 2]));
    let other = ParamInfo { name: "b.weight".into(), shape: vec![3, 2], decay: true };
    assert!(found.read(&other).unwrap_err().to_string().contains("expected F32 [3, 2]"));
}

#[test]
fn a_damaged_one_is_named_and_the_one_before_it_used() {
    let dir = tempfile::tempdir().unwrap();
    for step in [2, 4, 10] {
        save(dir.path(), &state(step), &params(), &mut numbers, 0).unwrap();
    }
    let damage = |step: &str, file: &str, at: usize| {
        let path = dir.path().join(step).join(file);
        let mut bytes = fs::read(&path).unwrap();
        bytes[at] ^= 1;
        fs::write(&path, bytes).unwrap();
    };
    damage("10", TENSORS, 200);
    fs::remove_file(dir.path().join("4").join(STATE)).unwrap();
    let mut warnings = Vec::new();
    let found = Checkpoint::latest(dir.path(), &mut |w| warnings.push(w)).unwrap().unwrap();
    assert_eq!(found.state.step, 2);
    assert!(warnings[0].starts_with("checkpoint 10 cannot be used") && warnings[0].contains("damaged: "), "{warnings:?}");
    assert!(warnings[1].starts_with("checkpoint 4 cannot be used"), "{warnings:?}");
    damage("2", STATE, 30);
    assert!(Checkpoint::latest(dir.path(), &mut |_| {}).is_err());
    assert!(Checkpoint::latest(&dir.path().join("none"), &mut |_| {}).unwrap().is_none());
}

#[test]
fn every_flipped_byte_of_a_checkpoint_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let place = save(dir.path(), &state(1), &params(), &mut numbers, 0).unwrap();
    for file in [STATE, TENSORS, MANIFEST] {
        let path = place.join(file);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            fs::write(&path, &bytes).unwrap();
            // White space of the manifest may change without harm; nothing else may.
            if let Ok(found) = Checkpoint::open(&place) {
                assert!(file == MANIFEST && found.state.step == 1, "{file} byte {at}");
            }
        }
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert!(Checkpoint::open(&place).is_err(), "{file} cut in half");
        fs::write(&path, whole).unwrap();
    }
    assert!(Checkpoint::open(&place).is_ok());
}

#[test]
fn old_ones_are_removed_and_a_failed_write_leaves_the_last() {
    let dir = tempfile::tempdir().unwrap();
    // Left behind by a run that was killed while it wrote.
    fs::create_dir(dir.path().join(".tmp-12")).unwrap();
    for step in [1, 2, 3, 20] {
        save(dir.path(), &state(step), &params(), &mut numbers, 2).unwrap();
    }
    let steps = |d: &Path| list(d).unwrap().into_iter().map(|(s, _)| s).collect::<Vec<_>>();
    assert_eq!(steps(dir.path()), [3, 20]);
    // A damaged one that is newer than the step does not count: the last whole ones stay.
    fs::create_dir(dir.path().join("30")).unwrap();
    prune(dir.path(), 20, 2).unwrap();
    assert_eq!(steps(dir.path()), [3, 20, 30]);
    fs::remove_dir(dir.path().join("30")).unwrap();
    let failed = save(dir.path(), &state(21), &params(), &mut |_| Err(Error::input("no numbers")), 2);
    assert!(failed.is_err());
    assert_eq!(steps(dir.path()), [3, 20]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing temporary is left");
}

#[test]
fn a_kill_between_removing_and_renaming_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let written = save(dir.path(), &state(4), &params(), &mut numbers, 1).unwrap();
    fs::rename(&written, dir.path().join(".tmp-4")).unwrap();
    // Of the old checkpoint of this step only a part was removed.
    fs::create_dir(&written).unwrap();
    fs::write(written.join(STATE), "{}").unwrap();
    let found = Checkpoint::latest(dir.path(), &mut |w| panic!("{w}")).unwrap().unwrap();
    assert_eq!((found.state.step, &found.path), (4, &written));
    // What is not whole is not adopted.
    fs::create_dir(dir.path().join(".tmp-6")).unwrap();
    assert_eq!(Checkpoint::latest(dir.path(), &mut |w| panic!("{w}")).unwrap().unwrap().state.step, 4);
}

#[test]
fn snapshots_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("reference/stage-2.safetensors");
    let infos: Vec<ParamInfo> = params().into_iter().map(|e| e.info).collect();
    Snapshot::save(&path, &infos, &mut |name| Ok(numbers(name)?.weight)).unwrap();
    let snapshot = Snapshot::open(&path).unwrap();
    assert_eq!(snapshot.read(&infos[1]).unwrap(), numbers("a.bias").unwrap().weight);
}
