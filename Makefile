# rk_apikeys: built by PGXS against the server that pg_config names.
EXTENSION = rk_apikeys
EXTVERSION = $(shell sed -n "s/^default_version = '\(.*\)'/\1/p" rk_apikeys.control)
SCRIPT = $(EXTENSION)--$(EXTVERSION).sql

MODULE_big = rk_apikeys
OBJS = $(patsubst %.c,%.o,$(sort $(wildcard src/*/*.c)))
# Only these symbols are visible to other libraries.
SHLIB_EXPORTS = src/exports.txt
# From the last release to this one.
UPDATE = $(notdir $(wildcard sql/updates/$(EXTENSION)--*--$(EXTVERSION).sql))
DATA_built = $(SCRIPT) $(UPDATE)
# For the use that a standby sends to its primary.
PG_CPPFLAGS = -I$(libpq_srcdir) -I$(srcdir)/src
SHLIB_LINK = $(libpq) $(filter -lcrypto, $(LIBS))
# From each earlier release to the next.
DATA = $(filter-out sql/updates/$(UPDATE), $(sort $(wildcard sql/updates/*.sql)))
EXTRA_CLEAN = $(SCRIPT) $(UPDATE) src/exports.list
# What the library says that it is.
PG_CPPFLAGS += -DRK_APIKEYS_VERSION='"$(EXTVERSION)"'

# A table of contents: the first makes the extension and the roles, the last removes them.
REGRESS = install tokens tables roles create guard verify verdict lifecycle rotate columns \
	import list_keys views orm_keys policies limits audit acl principal cascade attacks badinput uninstall
REGRESS_OPTS = --inputdir=test

# Each a race between sessions.
ISOLATION = revoke_vs_verify rotate_vs_rotate cascade_vs_create save_vs_delete max_keys limits_max
ISOLATION_OPTS = --inputdir=test/isolation --load-extension=rk_apikeys

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

# Before the others, macOS exports all of a loadable module.
ifeq ($(PORTNAME), darwin)
SHLIB_LINK += $(exported_symbols_list)
endif

# Races for what a verify writes, which from 17 on it does not.
ifneq ($(filter 15 16,$(MAJORVERSION)),)
ISOLATION += first_use delete_vs_verify
endif

$(OBJS): $(wildcard src/*.h src/*/*.h) rk_apikeys.control

# The parts are joined in the order of their names.
$(SCRIPT): $(sort $(wildcard sql/*.sql)) rk_apikeys.control
	cat $(sort $(wildcard sql/*.sql)) > $@

# An update ends with the parts that this release adds or makes anew, and with the same grants.
$(UPDATE): %: sql/updates/% sql/57-orm_keys.sql sql/58-policies.sql sql/59-limits.sql sql/65-http.sql sql/75-list_keys.sql sql/77-events.sql sql/80-health.sql sql/90-grants.sql
	cat $^ > $@

# The TAP tests against the installed extension, by PGXS alone, as a user who may run a server: all, or those of PROVE_TESTS.
.PHONY: check-tap
check-tap: PROVE_TESTS = $(sort $(wildcard test/t/*.pl))
check-tap:
	$(prove_installcheck)

# The archive for PGXN: what the last commit holds, under its own version; the same bytes wherever it is made.
DIST = $(EXTENSION)-$(shell sed -n '1,/"version"/s/^  "version": "\(.*\)",/\1/p' META.json)

.PHONY: dist
dist:
	TZ=UTC git archive --format=zip --prefix=$(DIST)/ --output=$(DIST).zip HEAD

# Take the last run's output over as expected, after its diff was read.
.PHONY: accept
accept:
	for t in $(REGRESS); do cp results/$$t.out expected/$$t.out; done
