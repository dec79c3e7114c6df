# ファインチューニング実践ワークショップ
PYTHON ?= python3
PROFILE ?= embedded
RUN ?=
SEED ?= 0
TALK = talk$(if $(filter ja,$(DATA_LANG)),-ja)
DATA ?=
DATA_LANG ?=
MIX ?=
PORT ?= 7860
MACHINE ?=
AGAINST ?=
QUICK ?=
export DOC ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

define FETCH
from lib.errors import command_line
from lib.export.gguf import fetch_converter
from lib.model.load import resolve
from lib.profiles import get_profile
with command_line():
    print("モデル:", resolve(get_profile("$(PROFILE)")))
    print("変換器:", fetch_converter())
endef
export FETCH
define PAIRS
import os
from lib.data.documents import write_pairs
from lib.errors import command_line
with command_line():
    write_pairs(os.environ["DOC"])
endef
export PAIRS

.DEFAULT_GOAL := help
.PHONY: help setup fetch check pairs run rehearse test mutate chaos bench lab app compare report gate lint clean

help: ## 使えるコマンドの一覧
	@grep -hE '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18
	@echo "  変数: PROFILE=$(PROFILE) RUN=$(RUN) SEED=$(SEED) DATA=$(DATA)（例: make run DATA=data/my/規則.csv）"
	@echo "  保守のためのもの（compare・mutate・chaos・bench・lint・setup・clean）は tests/README.md"

# torch だけは先に入れる: Linux で版を指定せずに入れると、数 GB の CUDA 版が来る。
# 手元の CPU 版 → PyTorch の CPU 版の配布元 → PyPI（macOS はここで CPU/MPS 版）の順に試す。
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"✋ Python {v[0]}.{v[1]} は使えません。3.11〜3.13 を PYTHON=python3.12 のように指定してください。")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "環境を用意しています（初回は数分かかります）"
	@torch=$$(sed -n 's/^torch==//p' constraints.txt); \
	if [ "$$(uname -s)" = Linux ]; then \
	  $(BIN)/pip install -q "torch==$$torch+cpu" 2>/dev/null \
	  || $(BIN)/pip install -q "torch==$$torch+cpu" --index-url https://download.pytorch.org/whl/cpu 2>/dev/null \
	  || $(BIN)/pip install -q "torch==$$torch"; \
	else $(BIN)/pip install -q "torch==$$torch"; fi
	@$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(READY) # 環境（.venv）を作る

fetch: $(READY) ## モデルと変換器を先に取っておく（オフラインに備える）
	@$(BIN)/python -c "$$FETCH"

check: $(READY) ## 話す前・始める前の、この機械の下見（DATA=… を付けると、自分のデータの検査）
	@$(if $(DATA),$(BIN)/python -m lib.data.own "$(DATA)",$(BIN)/python -m lib.talk.rehearse --check --profile $(PROFILE))

pairs: $(READY) ## 文書（DOC=ファイル）から問答の表を data/my/ に作る（採否は人が書く。PDF には pip install -e '.[pdf]'）
	@$(BIN)/python -c "$$PAIRS"

run: $(READY) ## 01〜08 を順に実行し、表と index.html で終わる
	@$(BIN)/python -m lib.execute --profile $(PROFILE) --run "$(RUN)" --seed $(SEED) --data "$(DATA)" --lang "$(DATA_LANG)" --mix "$(MIX)"

rehearse: $(READY) ## 発表を画面なしで通し、節ごとの分を予定と比べ、スライドを書く（MACHINE="機械の説明" で実演を記録する。DATA_LANG=ja で、日本語の実演）
	@$(BIN)/python -m lib.talk.rehearse --profile $(TALK) --run "$(RUN)" --budget $(if $(MACHINE),600,0)
	@$(if $(MACHINE),PYTHONPATH=. $(BIN)/python tests/maintain/record.py --talk --machine "$(MACHINE)" "$(or $(RUN),$(TALK))",:)

# 二つに分けて 1 本のスレッドずつで走らせる（2 コアでは、一つを 2 本のスレッドで走らせるより速い）。型の検査は、その裏で。
test: $(READY) ## テスト一式（環境の用意から）
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/python -c "$$FETCH"
	@said=$$(mktemp); $(BIN)/mypy >$$said 2>&1 & types=$$!; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder; red=$$?; \
	wait $$types || red=1; cat $$said; rm $$said; exit $$red

mutate: $(READY) # 大事な所をわざと壊し、テストが赤くなるかを見る（1 コアで 6 分ほど）
	@PYTHONPATH=. $(BIN)/python tests/maintain/mutations.py

chaos: $(READY) # 段の途中で 120 回止め（kill -9・Ctrl-C・書込みの失敗）、何も失われないかを見る
	@PYTHONPATH=.:tests OMP_NUM_THREADS=1 $(BIN)/python tests/maintain/chaos.py

bench: $(READY) # 速さを測る（この教材の学習 対 素の書き方。40 分ほど、QUICK=1 なら 6 分ほど。ほかの処理を止めて）
	@PYTHONPATH=. $(BIN)/python tests/maintain/bench.py $(if $(QUICK),--quick) --machine "$(MACHINE)"

lab: $(READY) ## JupyterLab を開く（127.0.0.1 のみ）
	@$(BIN)/jupyter lab --ServerApp.ip=127.0.0.1 --notebook-dir=.

app: $(READY) ## モデルを並べて答えさせ、ブラインド評価をするページを開く（127.0.0.1 のみ）
	@$(BIN)/python -c 'import gradio' 2>/dev/null || $(BIN)/pip install -q -c constraints.txt -e '.[app]'
	@$(BIN)/python -m lib.talk.app --run "$(or $(RUN),$(PROFILE))" --port $(PORT)

compare: $(READY) # 終わった実行を tests/results/expected.json と比べる
	@RUN="$(or $(RUN),$(PROFILE))" $(BIN)/python -m pytest tests/results --junitxml="outputs/$(or $(RUN),$(PROFILE))/regression.xml"

report: $(READY) ## 終わった実行の報告（report.html）を作り直す
	@$(BIN)/python -m lib.show.page report "$(or $(RUN),$(PROFILE))"

gate: $(READY) ## 前の段より悪いと示されたら失敗する（リリースゲート。AGAINST=実行 なら、その実行と比べる）
	@$(BIN)/python -m lib.show.page gate "$(or $(RUN),$(PROFILE))" $(if $(AGAINST),"$(AGAINST)")

lint: $(READY) # 書式をそろえる（ノートブックの出力も消す）
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format . ; $(BIN)/jupyter nbconvert --clear-output --inplace --log-level ERROR notebooks/*.ipynb

clean: # .venv を消す（outputs は残す）
	rm -rf $(VENV)
