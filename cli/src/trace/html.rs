//! The report as one page that needs nothing else.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{
    report::{Line, Report},
    table,
};

/// Colours follow the reader's choice of light or dark.
const STYLE: &str = "
:root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif; }
body { max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .2rem .6rem .2rem 0; border-bottom: 1px solid #8884; vertical-align: top; }
th { font-weight: 600; } .n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code { font-size: .9em; overflow-wrap: anywhere; }
.bar { display: inline-block; height: .6em; background: #4a7ebb; min-width: 1px; }
details { margin: .1rem 0 .4rem 0; } summary { cursor: pointer; }
";

/// The page, with the first `top` of each part open to be seen, and the lines' functions on demand.
pub fn page(report: &Report, title: &str, top: usize) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "quire trace: " (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "Cache lines that moved: " code { (title) } }
                @for sentence in table::heading(report).lines() { p { (sentence) "." } }
                h2 { "By object" }
                (objects(report, top))
                h2 { "By line" }
                (lines(report, top))
                h2 { "By function" }
                (functions(report, top))
            }
        }
    };
    page.into_string()
}

fn bar(weight: u64, all: u64) -> Markup {
    let width = weight as f64 * 8.0 / all.max(1) as f64;
    html! { span.bar style=(format!("width:{width:.2}rem")) {} }
}

/// Number, share, bar, and mean of an operation if there are any.
fn numbers(report: &Report, weight: u64, all: u64) -> Markup {
    html! {
        td.n { (weight) }
        td.n { (table::share(weight, all)) }
        td { (bar(weight, all)) }
        @if report.operations > 0 { td.n { (table::mean(report, weight)) } }
    }
}

fn head(report: &Report, what: &str, counted: &str) -> Markup {
    html! {
        tr {
            th { (what) }
            th.n { (counted) }
            th.n { "share" }
            th {}
            @if report.operations > 0 { th.n { "an operation" } }
        }
    }
}

fn objects(report: &Report, top: usize) -> Markup {
    html! {
        table {
            (head(report, "object", "transfers"))
            @for object in report.objects.iter().take(top) {
                tr {
                    td { (object.name) @if object.lines > 1 { " (" (object.lines) " lines)" } }
                    (numbers(report, report.weight(object.transfers, object.in_operations), report.total()))
                }
            }
        }
    }
}

fn lines(report: &Report, top: usize) -> Markup {
    html! {
        table {
            (head(report, "line", "transfers"))
            @for line in report.lines.iter().take(top) {
                tr {
                    td { (one_line(line)) }
                    (numbers(report, report.weight(line.transfers, line.in_operations), report.total()))
                }
            }
        }
    }
}

fn one_line(line: &Line) -> Markup {
    html! {
        details {
            summary { (table::title(line)) }
            table {
                @for row in table::fold(line) {
                    tr {
                        td.n { (row.transfers) }
                        td { (row.access) }
                        td {
                            code { (row.functions) }
                            @if let Some(part) = &row.part { " " (part) }
                        }
                        td { "CPU " (row.cpus.to_string()) }
                    }
                }
                @if line.by_others > 0 { tr { td.n { (line.by_others) } td { "by others" } } }
            }
            p { "CPU " (line.cpus.to_string()) ", at " code { (line.at) } " of memory" }
        }
    }
}

fn functions(report: &Report, top: usize) -> Markup {
    let weight = |f: &super::report::Executed| report.weight(f.instructions + f.periodic, f.in_operations);
    let all = report.functions.iter().map(weight).sum();
    html! {
        table {
            (head(report, "function", "instructions"))
            @for function in report.functions.iter().take(top) {
                tr {
                    td { code { (function.name) } }
                    (numbers(report, weight(function), all))
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::report::sample;

    #[test]
    fn the_page_stands_alone_and_is_escaped() {
        let mut report = sample::report();
        report.lines[0].name.what = "<script>alert(1)</script>".to_owned();
        let page = page(&report, "a <b> & c", 2);
        assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>"));
        assert!(
            page.contains("a &lt;b&gt; &amp; c")
                && page.contains("&lt;script&gt;")
                && !page.contains("<script")
        );
        for elsewhere in ["http:", "https:", "src=", "@import", "url("] {
            assert!(!page.contains(elsewhere), "{elsewhere}");
        }
        assert!(page.contains("spin::lock &lt; aspace::locked::Locked::fault") && page.contains("3.80"));
        // Only what was asked for.
        assert!(!page.contains("counter (p)"));
    }
}
