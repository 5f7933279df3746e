"""What people look at: figures, tables, the report, the paper's numbers. From files alone; nothing imports it but
notebooks.

    style                    one colour, marker and line per method
    tables, plain_tables     the main table and the summary; any table in three forms
    report, paper            everything on one page; what paper.tex reads
    reading                  settings and replies in a notebook
"""
