use super::*;

fn store() -> (tempfile::TempDir, ArtifactStore) {
    let folder = tempfile::tempdir().unwrap();
    let root = Utf8Path::from_path(folder.path())
        .unwrap()
        .join("artifacts");
    let store = ArtifactStore::open(&root).unwrap();
    (folder, store)
}

fn key(attempt: u64) -> SegmentKey {
    SegmentKey {
        run: "run-7".to_owned(),
        task: "bake.web".to_owned(),
        attempt,
    }
}

#[test]
fn records_come_back_from_any_offset() {
    let (_folder, store) = store();
    let mut writer = store.write_log(&key(3)).unwrap();
    let first = writer.append(10, 0, LogStream::Engine, b"pulling").unwrap();
    writer.append(11, 1, LogStream::Stdout, b"hello").unwrap();
    let third = writer.append(12, 1, LogStream::Stderr, b"").unwrap();
    assert_eq!(writer.durable_to(), 0);
    assert_eq!(writer.sync().unwrap(), third);
    assert_eq!(writer.durable_to(), third);

    let reader = store.read_log(&key(3)).unwrap();
    let all = reader.read(0, 1 << 20).unwrap();
    assert_eq!(
        (all.records.len(), all.next_offset, all.ended),
        (3, third, false)
    );
    let later = reader.read(first, 1 << 20).unwrap();
    assert_eq!(later.records, all.records[1..]);
    assert_eq!(later.records[0].payload, b"hello");
    assert_eq!(
        (later.records[1].stream, later.records[1].step),
        (LogStream::Stderr, 1)
    );
    let end = writer.finish(13).unwrap();
    let rest = reader.read(third, 1 << 20).unwrap();
    assert_eq!(
        (rest.records.len(), rest.next_offset, rest.ended),
        (0, end, true)
    );
}

#[test]
fn attempts_write_apart_and_once() {
    let (_folder, store) = store();
    assert_eq!(store.log_attempts("run-7", "bake.web").unwrap(), vec![]);
    drop(store.write_log(&key(10)).unwrap());
    drop(store.write_log(&key(9)).unwrap());
    assert!(matches!(
        store.write_log(&key(9)),
        Err(LogError::Exists { .. })
    ));
    assert_eq!(
        store.log_attempts("run-7", "bake.web").unwrap(),
        [key(9), key(10)]
    );
    for bad in ["", "..", "a/b", "a b"] {
        let key = SegmentKey {
            run: bad.to_owned(),
            ..key(1)
        };
        assert!(
            matches!(store.write_log(&key), Err(LogError::Name { .. })),
            "{bad:?}"
        );
    }
}

#[test]
fn a_torn_last_record_hides_nothing_before_it() {
    let (_folder, store) = store();
    let mut writer = store.write_log(&key(1)).unwrap();
    let whole = writer.append(1, 0, LogStream::Stdout, b"whole").unwrap();
    let end = writer
        .append(2, 0, LogStream::Stdout, b"torn by the crash")
        .unwrap();
    drop(writer);
    let path = store.log_path(&key(1)).unwrap();
    let bytes = fs::read(&path).unwrap();
    for cut in whole..end {
        fs::write(&path, &bytes[..cut as usize]).unwrap();
        let found = store.read_log(&key(1)).unwrap().read(0, 1 << 20).unwrap();
        assert_eq!(
            (found.records.len(), found.next_offset),
            (1, whole),
            "cut at {cut}"
        );
    }
    // The length reached the disk, the bytes did not.
    let mut zeros = bytes[..whole as usize].to_vec();
    zeros.resize(bytes.len(), 0);
    fs::write(&path, &zeros).unwrap();
    assert_eq!(
        store
            .read_log(&key(1))
            .unwrap()
            .read(0, 1 << 20)
            .unwrap()
            .next_offset,
        whole
    );
}

#[test]
fn damage_inside_is_an_error_with_its_place() {
    let (_folder, store) = store();
    let mut writer = store.write_log(&key(1)).unwrap();
    let first = writer.append(1, 0, LogStream::Stdout, b"one").unwrap();
    writer.append(2, 0, LogStream::Stdout, b"two").unwrap();
    writer.append(3, 0, LogStream::Stdout, b"three").unwrap();
    let path = store.log_path(&key(1)).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[first as usize + HEADER_BYTES] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let err = store
        .read_log(&key(1))
        .unwrap()
        .read(0, 1 << 20)
        .unwrap_err();
    assert!(
        matches!(err, LogError::Damaged { offset, .. } if offset == first),
        "{err}"
    );
}

#[test]
fn a_long_line_is_split_and_a_small_limit_still_moves_on() {
    let (_folder, store) = store();
    let mut writer = store.write_log(&key(1)).unwrap();
    let line = vec![b'x'; MAX_PAYLOAD_BYTES * 2 + 7];
    let end = writer.append(1, 0, LogStream::Stdout, &line).unwrap();
    let reader = store.read_log(&key(1)).unwrap();
    let (mut offset, mut got) = (0, Vec::new());
    while offset < end {
        let found = reader.read(offset, 1).unwrap();
        assert!(found.next_offset > offset);
        offset = found.next_offset;
        got.extend(found.records.into_iter().flat_map(|record| record.payload));
    }
    assert_eq!(got, line);
}

#[test]
fn a_follower_in_another_thread_reads_to_the_end() {
    let (_folder, store) = store();
    let mut follower = store.read_log(&key(1)).unwrap();
    let seen = std::thread::scope(|scope| {
        let seen = scope.spawn(move || {
            let (mut offset, mut lines) = (0, 0);
            loop {
                let found = follower.read(offset, 1 << 16).unwrap();
                offset = found.next_offset;
                lines += found.records.len();
                if found.ended {
                    return lines;
                }
                follower.wait(offset, Duration::from_secs(10)).unwrap();
            }
        });
        let mut writer = store.write_log(&key(1)).unwrap();
        for n in 0..500_u64 {
            writer
                .append(n, 0, LogStream::Stdout, format!("line {n}").as_bytes())
                .unwrap();
        }
        writer.finish(500).unwrap();
        seen.join().unwrap()
    });
    assert_eq!(seen, 500);
}
