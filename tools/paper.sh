#!/bin/sh
# paper/paper.tex with one study's figures and tables into paper/<study>.pdf. What is missing is said in one line.
set -eu
cd "$(dirname "$0")/../paper"
study=${1:-laptop}
made=../results/$study/paper_figures
command -v pdflatex >/dev/null 2>&1 || {
    echo "paper: no pdflatex; on Debian: apt-get install --no-install-recommends texlive-latex-recommended" >&2
    exit 1
}
for file in numbers table_main table_significance table_all failures costs; do
    [ -f "$made/$file.tex" ] || {
        echo "paper: $made/$file.tex is missing; run notebook 08_paper_figures of study $study, or make reproduce" >&2
        exit 1
    }
done
mkdir -p build
for pass in 1 2; do
    SOURCE_DATE_EPOCH=0 FORCE_SOURCE_DATE=1 pdflatex -interaction=nonstopmode -halt-on-error -output-directory build \
        -jobname "$study" "\\def\\studyname{$study}\\input{paper.tex}" >"build/$study.txt" || {
        grep -m 3 -A 3 '^!' "build/$study.txt" >&2
        exit 1
    }
done
mv "build/$study.pdf" .
echo "paper/$study.pdf"
