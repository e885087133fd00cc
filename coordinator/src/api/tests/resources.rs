//! Applying resources, setting secrets.

use oast_proto::v1;
use tonic::Code;

use super::{ADMIN, FLEET, Member, TEAM, refusal};

#[tokio::test(flavor = "multi_thread")]
async fn apply_shows_the_difference_and_changes_only_what_was_shown() {
    let member = Member::start().await;
    let shown = member.apply_as(ADMIN, FLEET, -1, true).await.unwrap();
    assert!(shown.created);
    assert_eq!(shown.revision, 0);
    let applied = member.apply_as(ADMIN, FLEET, 0, false).await.unwrap();
    assert_eq!(applied.revision, 1);
    let more = FLEET.replace("count: 3", "count: 5");
    let shown = member.apply_as(ADMIN, &more, -1, true).await.unwrap();
    assert_eq!((shown.revision, shown.created), (1, false));
    let change = &shown.changes[0];
    assert_eq!(change.path, "spec.sets[a].count");
    assert_eq!((change.before.as_str(), change.after.as_str()), ("3", "5"));
    // Somebody else was faster.
    let other = FLEET.replace("count: 3", "count: 4");
    member.apply_as(ADMIN, &other, 1, false).await.unwrap();
    let moved = refusal(member.apply_as(ADMIN, &more, 1, false).await);
    assert_eq!(moved, (Code::Aborted, "MOVED".into()));
    let same = member.apply_as(ADMIN, &other, -1, false).await.unwrap();
    assert_eq!((same.revision, same.changes.len()), (2, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_with_mistakes_names_all_of_them() {
    let member = Member::start().await;
    let broken = FLEET
        .replace("count: 3", "count: many")
        .replace("team: ", "taem: ");
    let status = member.apply(&broken).await.expect_err("it has mistakes");
    assert_eq!(status.code(), Code::InvalidArgument);
    let text = status.message();
    assert!(text.contains("taem") && text.contains("many"), "{text}");
    let two = format!("{TEAM}---\n{}", TEAM.replace("payments", "ads"));
    assert_eq!(refusal(member.apply(&two).await).0, Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_listed_can_be_applied_again() {
    let member = Member::start().await;
    member.apply(FLEET).await.unwrap();
    let asked = v1::ListResourcesRequest::default();
    let all = member.resources(ADMIN).list_resources(asked).await.unwrap();
    let all = all.into_inner().resources;
    let kinds: Vec<_> = all.iter().map(|one| one.kind.as_str()).collect();
    assert_eq!(kinds, ["Team", "Repository", "Fleet"]);
    for one in all {
        let again = member.apply(&one.document).await.unwrap();
        assert_eq!((again.revision, again.changes.len()), (one.revision, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secrets_value_is_kept_and_stands_in_no_byte_of_the_state_or_the_log() {
    let member = Member::start().await;
    let value = b"hunter2-is-a-secret".to_vec();
    let asked = v1::SetSecretRequest {
        team: "payments".into(),
        name: "hook".into(),
        value: value.clone().into(),
        ..v1::SetSecretRequest::default()
    };
    let secret = member.resources(ADMIN).set_secret(asked).await.unwrap();
    let secret = secret.into_inner();
    assert_eq!((secret.version, secret.set_by.as_str()), (1, "admin"));
    let kept = std::fs::read(member.folder.path().join("secrets/payments/hook")).unwrap();
    assert_eq!(kept, value);
    let holds = |bytes: &[u8]| bytes.windows(value.len()).any(|part| part == value);
    assert!(
        !member
            .farm
            .view()
            .records()
            .any(|(_, record)| holds(&record))
    );
    let mut folders = vec![member.folder.path().join("member")];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files += 1;
                assert!(!holds(&std::fs::read(&path).unwrap()), "{}", path.display());
            }
        }
    }
    assert!(files > 0);
}
