/*
 * redact.c
 *		Fuzzes src/server/redact.c: what becomes of a message on its way to the log, of
 *		its statement and of the backend's activity.  Its functions are static,
 *		so the file is included.
 *
 * The first byte says what is set; the lines of the rest are the texts.
 */
#include "server.h"

#include "texts.h"

static bool no_memory;

#define malloc(size) (no_memory ? NULL : malloc(size))
#include "../../src/server/redact.c"
#undef malloc

/* What the first byte says. */
#define REDACT_OFF 0x01
#define NO_MEMORY 0x02
#define HIDDEN 0x04

/* The server's, and the extension's setting. */
bool		settings_redact_logs;
const char *debug_query_string;
char	   *application_name;
PgBackendStatus *MyBEEntry;
emit_log_hook_type emit_log_hook;
post_parse_analyze_hook_type post_parse_analyze_hook;
ExecutorStart_hook_type ExecutorStart_hook;
ExecutorRun_hook_type ExecutorRun_hook;
ProcessUtility_hook_type ProcessUtility_hook;
volatile uint32 CritSectionCount;
volatile uint32 InterruptHoldoffCount;
volatile sig_atomic_t InterruptPending;

typedef struct Text
{
	char	   *now;			/* what is masked in place; NULL: not set */
	char	   *before;
	size_t		len;
} Text;

enum
{
	MESSAGE, DETAIL, DETAIL_LOG, HINT, CONTEXT, INTERNAL_QUERY, STATEMENT,
	ACTIVITY, ACTIVITY_APPLICATION, APPLICATION, TEXTS
};

static int	passed_on;

static void
pass_on(ErrorData *edata)
{
	passed_on++;
}

/* The lines of a text, each NUL-terminated and without a byte to spare. */
static void
split(const char *s, size_t len, Text *texts)
{
	const char *end = s + len;

	memset(texts, 0, TEXTS * sizeof(Text));
	for (int i = 0; i < TEXTS && s <= end; i++)
	{
		const char *line_end = memchr(s, '\n', end - s);
		size_t		n = (line_end ? line_end : end) - s;

		texts[i].now = malloc(n + 1);
		memcpy(texts[i].now, s, n);
		texts[i].now[n] = '\0';
		/* one with a NUL byte inside ends there */
		texts[i].len = strlen(texts[i].now);
		texts[i].before = texts_exact(texts[i].now, texts[i].len + 1);
		s += n + 1;
	}
}

/* Runs of digits behind a key id are shorter than so many, or end a name. */
static void
check_masked(const char *s, const Text *text, size_t run)
{
	size_t		len = strlen(s);

	HOLDS(len <= text->len);
	for (size_t i = 0; i < len; i++)
	{
		size_t		end = i;

		if (!texts_behind_key_id(s, i))
			continue;
		while (texts_base62(s[end]))
			end++;
		HOLDS(end - i < run || texts_tail_of_name(s, i, end));
	}
}

/* What masking in place leaves behind the end is wiped. */
static void
check_wiped(const Text *text)
{
	for (size_t i = strlen(text->now); i <= text->len; i++)
		HOLDS(text->now[i] == '\0');
}

static void
check_unchanged(const char *s, const Text *text)
{
	HOLDS(memcmp(s, text->before, text->len + 1) == 0);
}

int
LLVMFuzzerTestOneInput(const uint8 *data, size_t size)
{
	static int	changes = 0;
	char		expanded[TEXTS_MAX];
	Text		texts[TEXTS];
	ErrorData	edata = {0};
	PgBackendStatus entry = {0};
	bool		hidden;
	bool		suspected;

	if (size < 1)
		return 0;
	server_seed(size);
	split(expanded, texts_expand(data + 1, size - 1, expanded), texts);
	settings_redact_logs = !(*data & REDACT_OFF);
	no_memory = *data & NO_MEMORY;
	hidden = edata.hide_stmt = *data & HIDDEN;
	edata.message = texts[MESSAGE].now;
	edata.detail = texts[DETAIL].now;
	edata.detail_log = texts[DETAIL_LOG].now;
	edata.hint = texts[HINT].now;
	edata.context = texts[CONTEXT].now;
	edata.internalquery = texts[INTERNAL_QUERY].now;
	debug_query_string = texts[STATEMENT].now;
	application_name = texts[APPLICATION].now;
	entry.st_activity_raw = texts[ACTIVITY].now;
	entry.st_appname = texts[ACTIVITY_APPLICATION].now;
	/* as the server counts when it writes them */
	entry.st_changecount = changes += 2;
	MyBEEntry = entry.st_appname ? &entry : NULL;
	suspected = texts[STATEMENT].now &&
		token_suspected(texts[STATEMENT].now, texts[STATEMENT].len);
	previous_emit_log_hook = pass_on;
	passed_on = 0;

	/* the second time there is nothing left to do */
	redact_log(&edata);
	redact_log(&edata);

	HOLDS(passed_on == 2);
	HOLDS(CritSectionCount == 0 && entry.st_changecount % 2 == 0);
	changes = entry.st_changecount;
	for (int i = 0; i < TEXTS; i++)
	{
		if (texts[i].now == NULL)
			continue;
		/* others still read the statement as it came */
		if (!settings_redact_logs || i == STATEMENT ||
			(i == ACTIVITY && MyBEEntry == NULL))
			check_unchanged(texts[i].now, &texts[i]);
		else
		{
			check_masked(texts[i].now, &texts[i],
						 i == APPLICATION || i == ACTIVITY_APPLICATION ? 20 : 1);
			check_wiped(&texts[i]);
		}
	}
	if (settings_redact_logs && suspected && !hidden)
	{
		HOLDS(edata.hide_stmt == no_memory);
		HOLDS((debug_query_string == texts[STATEMENT].now) == no_memory);
		if (!no_memory)
			check_masked(debug_query_string, &texts[STATEMENT], 1);
	}
	else
		HOLDS(edata.hide_stmt == hidden && debug_query_string == texts[STATEMENT].now);

	for (int i = 0; i < TEXTS; i++)
	{
		free(texts[i].now);
		free(texts[i].before);
	}
	return 0;
}
