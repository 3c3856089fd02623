//! The report as a page, in a browser: what it shows, what it cannot be made to do, on which screens and on paper.

use std::fs;
use std::path::Path;

use mongodb::bson::{Document, doc};
use scheduler_bridge::entity::ENTITIES;
use serde_json::{Value, json};
use sqlx::Executor;

use super::backfill;
use super::columns::{Shape, insert, victim};
use crate::bed::Bed;
use crate::browser::Page;

/// Text that would run, end a tag, move the cursor, turn the line or hide.
const HOSTILE: &str = "</td></table></style><script>document.title='ran'</script><img src=x onerror=\"document.title='ran'\">\
                       &lt;\x1b[2J\u{202e}\u{2066}\u{200b}\u{feff}";

/// Of these characters nothing may reach the page.
const RAW: [char; 5] = ['\x1b', '\u{202e}', '\u{2066}', '\u{200b}', '\u{feff}'];

/// All that the page shows, cell by cell.
const SHOWN: &str = "(() => {
    const cells = rows => [...document.querySelectorAll(rows)].map(row => [...row.cells].map(cell => cell.textContent));
    return {
        title: document.title, scripts: document.scripts.length, images: document.images.length,
        verdict: document.querySelector('h1').textContent, text: document.documentElement.textContent,
        counts: cells('#counts tbody tr'), total: cells('#counts tfoot tr')[0], keys: cells('.keys tbody tr'),
        quarantine: cells('.quarantine tbody tr'), diffs: document.querySelectorAll('.diff').length,
        tone: getComputedStyle(document.querySelector('h1')).color,
    };
})()";

/// `bridge verify` with these arguments besides: its object, and its page.
async fn verified(bed: &Bed, file: &Path, arguments: &[&str]) -> Value {
    let file = file.to_str().expect("a path");
    crate::commands::object(bed, &[&["verify", "--report", file], arguments].concat(), 1).await
}

async fn opened(file: &Path) -> Page {
    let file = file.to_owned();
    tokio::task::spawn_blocking(move || Page::open(&file)).await.expect("open the page")
}

/// One of each kind, one in quarantine, and hostile text in ids, names, values and reasons.
async fn hostile() -> Bed {
    let bed = Bed::new().await;
    let runs = ENTITIES.iter().find(|entity| entity.name == "runs").expect("runs");
    let mut documents: Vec<_> = (0..3).map(|number| victim(runs, number, Shape::Regular)).collect();
    documents.push(doc! { "_id": "lost", "tenantId": "t", "state": HOSTILE });
    insert(&bed, runs, &documents).await;
    backfill(&bed).await;
    let mut late = victim(runs, 9, Shape::Regular);
    late.extend(doc! { "_id": HOSTILE, HOSTILE: HOSTILE });
    bed.database.collection::<Document>("runs").insert_one(late).await.expect("insert");
    let changed = sqlx::query("update scheduler.runs set error = $1 where id = 'victim-00000'").bind(HOSTILE);
    changed.execute(bed.pool()).await.expect("change");
    let extra =
        "insert into scheduler.runs (id, tenant_id, state, epoch, clock) values ($1 || 'x', $1, 'queued', 1, 1)";
    sqlx::query(extra).bind(HOSTILE).execute(bed.pool()).await.expect("insert");
    bed
}

/// A count as the page shows it.
fn number(shown: &Value) -> u64 {
    shown.as_str().expect("a text").replace(',', "").parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_the_numbers_of_the_json_and_every_value_stays_in_its_place() {
    let (bed, folder) = (hostile().await, tempfile::tempdir().expect("a folder"));
    let file = folder.path().join("report.html");
    let object = verified(&bed, &file, &[]).await;
    let mut page = opened(&file).await;
    let shown = page.value(SHOWN);
    assert_eq!(page.complaints, [] as [String; 0]);
    assert_eq!(shown["verdict"], object["verdict"]);
    let names = ["documents", "rows", "quarantined", "missing", "extra", "content"];
    let collections = object["collections"].as_array().expect("collections");
    assert_eq!(shown["counts"].as_array().expect("rows").len(), collections.len());
    for (at, collection) in collections.iter().enumerate() {
        assert_eq!(shown["counts"][at][0], collection["name"]);
        for (column, name) in names.iter().enumerate() {
            assert_eq!(json!(number(&shown["counts"][at][column + 1])), collection[name], "{collection} {name}");
        }
    }
    for (column, name) in names.iter().enumerate() {
        let sum: u64 = collections.iter().filter_map(|one| one[name].as_u64()).sum();
        assert_eq!(number(&shown["total"][column + 1]), sum, "{name}");
    }
    assert_eq!(shown["keys"].as_array().expect("keys").len(), 3);
    assert_eq!((&shown["diffs"], &shown["quarantine"][0][1]), (&json!(3), &json!("lost")));

    assert_eq!((&shown["scripts"], &shown["images"]), (&json!(0), &json!(0)));
    assert_ne!(shown["title"], "ran");
    let text = shown["text"].as_str().expect("a text");
    assert!(!text.contains(RAW), "{text}");
    assert!(text.matches("<script>document.title='ran'</script>").count() >= 5, "{text}");
    assert!(text.contains(r"\u{202e}\u{2066}\u{200b}\u{feff}"), "{text}");
    // The style sheet is the one that the page's policy allows.
    assert_eq!(shown["tone"], "rgb(180, 35, 24)");
}

#[tokio::test(flavor = "multi_thread")]
async fn markup_that_got_into_the_page_could_do_nothing() {
    let (bed, folder) = (hostile().await, tempfile::tempdir().expect("a folder"));
    let file = folder.path().join("report.html");
    verified(&bed, &file, &[]).await;
    let page = fs::read_to_string(&file).expect("read");
    let inside =
        page.replace("</header>", &format!("</header><style>h1 {{ color: lime !important; }}</style>{HOSTILE}"));
    fs::write(&file, &inside).expect("write");
    let mut guarded = opened(&file).await;
    let shown = guarded.value(SHOWN);
    assert_eq!((&shown["scripts"], &shown["images"]), (&json!(1), &json!(1)));
    assert_ne!(shown["title"], "ran");
    assert_eq!(shown["tone"], "rgb(180, 35, 24)");
    assert!(guarded.complaints.iter().any(|one| one.contains("Content Security Policy")), "{:?}", guarded.complaints);
    // Without the policy the same would have run.
    fs::write(&file, inside.replace("http-equiv=Content-Security-Policy", "name=nothing")).expect("write");
    let shown = opened(&file).await.value(SHOWN);
    assert_eq!((&shown["title"], &shown["tone"]), (&json!("ran"), &json!("rgb(0, 255, 0)")));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_fits_a_small_screen_a_dark_one_and_paper() {
    let (bed, folder) = (hostile().await, tempfile::tempdir().expect("a folder"));
    let file = folder.path().join("report.html");
    verified(&bed, &file, &[]).await;
    let mut page = opened(&file).await;
    let metrics = json!({ "width": 380, "height": 800, "deviceScaleFactor": 1, "mobile": true });
    page.ask("Emulation.setDeviceMetricsOverride", metrics);
    assert_eq!(page.value("document.documentElement.scrollWidth"), 380);
    let paper = "getComputedStyle(document.body).backgroundColor";
    assert_eq!(page.value(paper), "rgb(255, 255, 255)");
    let dark = json!([{ "name": "prefers-color-scheme", "value": "dark" }]);
    page.ask("Emulation.setEmulatedMedia", json!({ "features": dark }));
    assert_eq!(page.value(paper), "rgb(20, 24, 31)");
    // On paper it is light, and what was folded is open.
    let folded = "document.querySelectorAll('details').forEach(one => one.open = false);
        document.querySelector('.keys').checkVisibility({ contentVisibilityAuto: true })";
    assert_eq!(page.value(folded), false);
    page.ask("Emulation.clearDeviceMetricsOverride", json!({}));
    page.ask("Emulation.setEmulatedMedia", json!({ "media": "print", "features": dark }));
    assert_eq!(page.value(paper), "rgb(255, 255, 255)");
    assert_eq!(page.value("document.querySelector('.keys').checkVisibility({ contentVisibilityAuto: true })"), true);
    let pdf = page.ask("Page.printToPDF", json!({ "preferCSSPageSize": true }));
    // "%PDF-" in base 64.
    assert!(pdf["data"].as_str().expect("data").starts_with("JVBERi"));
    assert_eq!(page.complaints, [] as [String; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_mismatches_with_long_ids_stay_under_two_megabytes() {
    let (bed, folder) = (Bed::new().await, tempfile::tempdir().expect("a folder"));
    bed.database.create_collection("runs").await.expect("create");
    let rows = "insert into scheduler.runs (id, tenant_id, state, epoch, clock)
        select n || repeat('<', 300), 't', 'queued', 1, 1 from generate_series(1, 10000) n";
    bed.pool().execute(rows).await.expect("insert");
    let file = folder.path().join("report.html");
    let object = verified(&bed, &file, &["--collection", "runs"]).await;
    assert_eq!(object["collections"][0]["extra"], 10_000);
    assert!(fs::metadata(&file).expect("the file").len() < 2_000_000);
    let mut page = opened(&file).await;
    assert_eq!(page.value("document.querySelectorAll('.keys tbody tr').length"), 10_000);
    assert_eq!(page.complaints, [] as [String; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redacted_report_names_keys_and_no_value_in_any_form() {
    let (bed, folder) = (hostile().await, tempfile::tempdir().expect("a folder"));
    let update = "update scheduler.runs set error = 'geheim' where id = 'victim-00000'";
    bed.pool().execute(update).await.expect("change");
    for redact in [false, true] {
        let flags: &[&str] = if redact { &["--redact"] } else { &[] };
        let (html, json) = (folder.path().join("report.html"), folder.path().join("report.json"));
        let mut forms = vec![verified(&bed, &html, flags).await.to_string()];
        verified(&bed, &json, flags).await;
        forms.extend([html, json].map(|file| fs::read_to_string(file).expect("read")));
        let mut text = bed.bridge(&[&["verify"], flags].concat());
        let text = tokio::task::spawn_blocking(move || text.output()).await.expect("a thread").expect("run");
        forms.push(String::from_utf8(text.stdout).expect("UTF-8"));
        for form in forms {
            assert_eq!(form.contains("geheim"), !redact, "{form}");
            assert!(form.contains("victim-00000") && form.contains("tenantId"), "{form}");
        }
    }
}
