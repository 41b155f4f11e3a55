# procpool: build, install, test. `make help` lists the targets.
#
# Everything a packager may want to change is a variable, to be given on the
# command line or in the environment. `make demo` and `make test` install what
# they need first (tools/setup); `make` itself and `make install` never do.

VERSION = 0.1.0

LUA_VERSION ?= 5.4
LUA         ?= lua5.4
LUA_DIRS    ?= /usr/include/lua$(LUA_VERSION) /usr/include/lua54 \
               /usr/local/include/lua$(LUA_VERSION) /usr/local/include \
               /usr/include
LUA_INCDIR  ?= $(firstword $(foreach d,$(LUA_DIRS),\
                 $(if $(wildcard $(d)/lua.h),$(d))))

PREFIX      ?= /usr/local
INST_LIBDIR ?= $(PREFIX)/lib/lua/$(LUA_VERSION)
INST_LUADIR ?= $(PREFIX)/share/lua/$(LUA_VERSION)

ifeq ($(origin CC),default)
CC = gcc
endif
BUILD    ?= build
CFLAGS   ?= -O2 -g
WERROR   ?= -Werror
LIBFLAG  ?= -shared
WARNINGS  = -Wall -Wextra -Wshadow -Wcast-qual -Wundef -Wwrite-strings \
            -Wstrict-prototypes -Wmissing-prototypes $(WERROR)
FLAGS     = -std=gnu11 -fPIC -fvisibility=hidden -pthread $(WARNINGS) \
            $(VARIANT) $(CPPFLAGS) $(CFLAGS)
LINK      = -pthread $(VARIANT) $(LDFLAGS)

# The binding is what may include lua.h; everything else in src is the engine,
# which is tested without Lua. `make lint` holds both to it.
BINDING_SRC = $(wildcard src/module.c src/runner.c src/handle*.c src/bind*.c \
                src/codec*.c src/names.c)
ENGINE_SRC  = $(filter-out $(BINDING_SRC),$(wildcard src/*.c))
SUPPORT_SRC = $(wildcard tests/support/*.c)
TEST_SRC    = $(wildcard tests/*_test.c)

object      = $(patsubst %.c,$(BUILD)/%.o,$(1))
BINDING_OBJ = $(call object,$(BINDING_SRC))
ENGINE_OBJ  = $(call object,$(ENGINE_SRC))
SUPPORT_OBJ = $(call object,$(SUPPORT_SRC))
TESTS       = $(patsubst %.c,$(BUILD)/%,$(TEST_SRC))
# The annotations (core_meta.lua) too: editors read them where they are
# installed, and luarocks copies all of lua/ anyway.
LUA_FILES   = $(wildcard lua/procpool/*.lua)
MODULE      = $(BUILD)/procpool/core.so
HELPERS     = $(BUILD)/chelper.so $(BUILD)/clock.so

.PHONY: all help setup install uninstall demo test ctests helpers lint rockspec \
        bench bench-quick asan tsan valgrind fuzz soak model faults board clean
.SECONDARY:

all: $(MODULE)

help:
	@echo "make                  build $(MODULE)"
	@echo "make install          PREFIX, DESTDIR, INST_LIBDIR, INST_LUADIR"
	@echo "make uninstall        removes what install put there"
	@echo "make demo             count words in parallel (DIR=/some/tree)"
	@echo "make test             every test (FILES='spec/a_spec.lua ...')"
	@echo "make lint             static checks of C, Lua and the rockspecs"
	@echo "make rockspec         write the lists of files into the rockspecs"
	@echo "make bench            measure; bench-quick: a minute of it"
	@echo "make asan|tsan|valgrind   the tests under a checker"
	@echo "make fuzz|soak|model|faults   longer hunts for errors"
	@echo "make board PID=       what a pool's processes are doing"
	@echo "make setup            install what the targets above need"
	@echo "make clean"

setup:
	@tools/setup all

# --- compiling -------------------------------------------------------------
# Files are made under another name and renamed, so that neither a running
# process nor a second make in this tree ever meets half of one.

$(MODULE): $(BINDING_OBJ) $(ENGINE_OBJ) | $(BUILD)/lua-checked
	@mkdir -p $(@D)
	$(CC) $(LIBFLAG) -o $@.$$$$ $^ $(LINK) && mv -f $@.$$$$ $@

$(BINDING_OBJ): INCLUDES = -I$(LUA_INCDIR)
$(BINDING_OBJ): $(BUILD)/lua-checked

$(BUILD)/%.o: %.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(CC) $(FLAGS) -Isrc $(INCLUDES) -MMD -MP -MT $@ -MF $(@:.o=.d) \
	  -c $< -o $@.$$$$ && mv -f $@.$$$$ $@

$(BUILD)/tests/%_test: $(BUILD)/tests/%_test.o $(SUPPORT_OBJ) $(ENGINE_OBJ)
	$(CC) -o $@.$$$$ $^ $(LINK) -lm && mv -f $@.$$$$ $@

ctests: $(TESTS) helpers

# What specs need of C, and only they.
helpers: $(HELPERS)

$(HELPERS): $(BUILD)/%.so: $(BUILD)/spec/support/%.o
	$(CC) $(LIBFLAG) -o $@.$$$$ $^ $(LINK) && mv -f $@.$$$$ $@

$(BUILD)/spec/support/chelper.o: INCLUDES = -I$(LUA_INCDIR)
$(BUILD)/spec/support/chelper.o: $(BUILD)/lua-checked

# Holds the flags of the last build: other flags, or another list of files,
# build everything anew.
STATE = $(CC) $(FLAGS) $(LINK) $(LUA_INCDIR) $(BINDING_SRC) $(ENGINE_SRC)
$(BUILD)/flags: always
	@mkdir -p $(@D)
	@echo '$(STATE)' | cmp -s - $@ || echo '$(STATE)' > $@
.PHONY: always

$(BUILD)/lua-checked: $(BUILD)/flags
	@mkdir -p $(@D)
	@if [ ! -f '$(LUA_INCDIR)/lua.h' ]; then \
	  echo "procpool: lua.h of Lua 5.4 not found: install liblua5.4-dev" \
	    "(make setup does), or give LUA_INCDIR=/path/to/include" >&2; \
	  exit 1; fi
	@if ! command -v $(firstword $(CC)) >/dev/null; then \
	  echo "procpool: no C compiler $(firstword $(CC)): install gcc" \
	    "(make setup does), or give CC=..." >&2; exit 1; fi
	@num=$$(printf '#include "lua.h"\nLUA_VERSION_NUM\n' | \
	  $(CC) -E -P -I'$(LUA_INCDIR)' - | tail -n 1); \
	  case $$(($$num)) in 504) ;; *) \
	  echo "procpool: needs Lua 5.4, but $(LUA_INCDIR)/lua.h is of" \
	    "Lua $$(($$num / 100)).$$(($$num % 100)); give LUA_INCDIR" >&2; \
	  exit 1;; esac
	@touch $@

# --- installing ------------------------------------------------------------

install: $(MODULE)
	mkdir -p '$(DESTDIR)$(INST_LIBDIR)/procpool' \
	  '$(DESTDIR)$(INST_LUADIR)/procpool'
	rm -f '$(DESTDIR)$(INST_LIBDIR)/procpool/core.so'
	cp $(MODULE) '$(DESTDIR)$(INST_LIBDIR)/procpool/core.so'
	cp $(LUA_FILES) '$(DESTDIR)$(INST_LUADIR)/procpool/'

uninstall:
	rm -f '$(DESTDIR)$(INST_LIBDIR)/procpool/core.so' \
	  $(foreach f,$(notdir $(LUA_FILES)),\
	    '$(DESTDIR)$(INST_LUADIR)/procpool/$(f)')
	-rmdir '$(DESTDIR)$(INST_LIBDIR)/procpool' \
	  '$(DESTDIR)$(INST_LUADIR)/procpool' 2>/dev/null

# --- running ---------------------------------------------------------------
# What a target needs is installed by tools/setup, which is silent and quick
# when everything is there. The build is a make of its own, since the headers
# may only just have arrived.

export LUA BUILD
PATHS = LUA_PATH='$(CURDIR)/lua/?.lua;$(CURDIR)/lua/?/init.lua;;' \
        LUA_CPATH='$(CURDIR)/$(BUILD)/?.so;;'
# $(call need,file,what it is)
need = @test -e $(1) || { echo "make $@: $(2) ($(1)) is missing" >&2; exit 1; }

demo:
	@tools/setup run
	@$(MAKE) --no-print-directory -s all
	@$(PATHS) $(LUA) examples/wordcount.lua $(DIR)

test:
	@tools/setup test
	@tools/test $(FILES)

bench bench-quick:
	@tools/setup test
	@$(MAKE) --no-print-directory -s all
	$(call need,bench/run,the benchmark runner)
	@$(PATHS) bench/run $(if $(findstring quick,$@),--quick) $(ARGS)

# The C tests and the specs, built with a checker compiled in. A Lua that was
# built without it gets the checker's library by LD_PRELOAD.
ASAN = -fsanitize=address,undefined -fno-sanitize-recover=undefined \
       -fno-omit-frame-pointer
asan:
	@tools/setup test
	@BUILD=build/asan VARIANT='$(ASAN)' CFLAGS='-O1 -g' \
	  PRELOAD="$$($(CC) -print-file-name=libasan.so)" \
	  ASAN_OPTIONS=detect_leaks=0:$$ASAN_OPTIONS \
	  UBSAN_OPTIONS=print_stacktrace=1:$$UBSAN_OPTIONS \
	  TEST_LEAST=600 tools/test $(FILES)

# Threads in the workers' place: the C tests alone, where the thread sanitizer
# can see all sides. It needs an address space without surprises, and knows no
# fences: what it says of data ordered by one alone is to be judged by hand.
NO_FENCE = $(shell $(CC) -Wno-tsan -Werror -E -x c /dev/null >/dev/null 2>&1 \
             && echo -Wno-tsan)
tsan:
	@tools/setup test
	@BUILD=build/tsan VARIANT='-fsanitize=thread $(NO_FENCE)' CFLAGS='-O1 -g' \
	  TEST_WRAP="$$(command -v setarch >/dev/null && echo setarch -R)" \
	  TEST_LEAST=600 tools/test $(or $(FILES),c)

# No search for leaks: it would walk the whole reserved region at every exit.
# Fair: else a thread that spins can keep the others from running for minutes.
valgrind:
	@tools/setup test valgrind
	@TEST_WRAP="valgrind -q --error-exitcode=99 --leak-check=no \
	  --child-silent-after-fork=no --fair-sched=try" \
	  BUILD=build/valgrind VARIANT=-DPROCPOOL_VALGRIND CFLAGS='-O1 -g' \
	  TEST_LEAST=900 tools/test $(or $(FILES),c)

fuzz:
	@tools/setup run
	$(call need,fuzz/run,the fuzzer)
	@fuzz/run $(ARGS)

faults:
	@tools/setup test
	$(call need,tests/faults,the fault matrix)
	@$(MAKE) --no-print-directory -s BUILD=build/faults \
	  VARIANT=-DPROCPOOL_FAULTS all ctests
	@BUILD=build/faults tests/faults $(ARGS)
	@if command -v strace >/dev/null; then \
	  $(subst $(BUILD)/?.so,build/faults/?.so,$(PATHS)) $(LUA) tests/inject; \
	  else echo "make faults: no strace, so no failing system calls"; fi

soak:
	@tools/setup test
	@$(MAKE) --no-print-directory -s all helpers
	@$(PATHS) $(LUA) tests/soak $(or $(MINUTES),5) $(SEED)

model:
	$(call need,docs/model/run,the model)
	@docs/model/run

board:
	$(call need,tools/board,the board printer)
	@tools/board $(PID)

# --- checking the sources --------------------------------------------------

lint:
	@tools/setup lint
	@CC='$(CC)' LUA_INCDIR='$(LUA_INCDIR)' BINDING='$(BINDING_SRC)' \
	  ENGINE='$(ENGINE_SRC)' tools/lint

rockspec:
	@$(LUA) tools/rockspec write

clean:
	rm -rf $(BUILD)

-include $(wildcard $(BUILD)/src/*.d $(BUILD)/tests/*.d \
           $(BUILD)/tests/support/*.d $(BUILD)/spec/support/*.d)
