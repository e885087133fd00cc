use super::*;
use crate::time::BEGINNING;

struct Bench {
    blobs: Blobs,
    dice: Dice,
    link: String,
}

const SIZE: u64 = (20 << 20) + PAGE;

fn bench() -> Bench {
    let mut dice = Dice::new(7);
    let mut blobs = Blobs::default();
    let name = blobs.create(SIZE, &mut dice);
    let link = blobs.grant(&name, true, BEGINNING.after(60_000), "", &mut dice);
    Bench { blobs, dice, link }
}

impl Bench {
    fn put(&mut self, from: u64, length: u64, extra: &[(&str, &str)]) -> Reply {
        let mut request = Request::at(Method::Put, &format!("{}&comp=page", self.link));
        request.body = Bytes::from(vec![9; index(length)]);
        request.headers = vec![
            ("x-ms-page-write".to_owned(), "update".to_owned()),
            (
                "range".to_owned(),
                format!("bytes={from}-{}", from + length - 1),
            ),
        ];
        let more = extra
            .iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()));
        request.headers.extend(more);
        self.blobs.answer(&request, BEGINNING, &mut self.dice)
    }

    fn pages(&mut self) -> String {
        let request = Request::at(Method::Get, &format!("{}&comp=pagelist", self.link));
        let reply = self.blobs.answer(&request, BEGINNING, &mut self.dice);
        let Content::Text(_, list) = reply.content else {
            panic!("a page list is text");
        };
        list
    }
}

fn code(reply: &Reply) -> (u16, &str) {
    (
        reply.status,
        reply.header("x-ms-error-code").unwrap_or_default(),
    )
}

#[test]
fn whole_pages_inside_the_blob_of_at_most_four_mebibytes_are_taken() {
    let mut bench = bench();
    assert_eq!(bench.put(0, 4 << 20, &[]).status, 201);
    assert_eq!(
        code(&bench.put(0, (4 << 20) + 512, &[])),
        (413, "RequestBodyTooLarge")
    );
    assert_eq!(code(&bench.put(100, 512, &[])), (416, "InvalidPageRange"));
    assert_eq!(code(&bench.put(SIZE, 512, &[])), (416, "InvalidPageRange"));
    let wrong = bench.put(0, 512, &[("content-md5", "AAAA")]);
    assert_eq!(code(&wrong), (400, "Md5Mismatch"));
    let right = STANDARD.encode(Md5::digest([9; 512]));
    assert_eq!(bench.put(0, 512, &[("content-md5", &right)]).status, 201);
}

#[test]
fn the_page_list_says_what_was_written_and_not_cleared() {
    let mut bench = bench();
    bench.put(CHUNK - 512, 1024, &[]);
    bench.put(8 << 20, 512, &[]);
    let mut clear = Request::at(Method::Put, &format!("{}&comp=page", bench.link));
    clear.headers = vec![
        ("x-ms-page-write".to_owned(), "clear".to_owned()),
        (
            "x-ms-range".to_owned(),
            format!("bytes={CHUNK}-{}", CHUNK + 511),
        ),
    ];
    let list = bench.pages();
    assert!(
        list.contains("<Start>65024</Start><End>66047</End>"),
        "{list}"
    );
    let cleared = bench.blobs.answer(&clear, BEGINNING, &mut bench.dice);
    assert_eq!(cleared.status, 201);
    let list = bench.pages();
    assert!(
        list.contains("<Start>65024</Start><End>65535</End>"),
        "{list}"
    );
    assert!(
        list.contains("<Start>8388608</Start><End>8389119</End>"),
        "{list}"
    );
}

#[test]
fn a_link_ends_with_its_time_and_reading_gives_no_right_to_write() {
    let mut bench = bench();
    let request = Request::at(Method::Get, &format!("{}&comp=pagelist", bench.link));
    let late = bench
        .blobs
        .answer(&request, BEGINNING.after(60_000), &mut bench.dice);
    assert_eq!(code(&late), (403, "AuthenticationFailed"));
    let name = bench.blobs.create(SIZE, &mut bench.dice);
    let until = BEGINNING.after(1000);
    bench.link = bench.blobs.grant(&name, false, until, "", &mut bench.dice);
    assert_eq!(
        code(&bench.put(0, 512, &[])),
        (403, "AuthorizationPermissionMismatch")
    );
    bench.blobs.revoke(&name);
    assert_eq!(code(&bench.put(0, 512, &[])), (403, "AuthenticationFailed"));
}
