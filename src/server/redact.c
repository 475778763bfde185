/*
 * redact.c
 *		Tokens are kept out of the server log and of pg_stat_activity.
 *
 * A client that pastes a token into the text of a statement, or sends it as a
 * parameter that the server is set to log, would leave it in the log.  So
 * whatever looks like a token is masked in all that is about to be logged, and
 * in this backend's own entry of pg_stat_activity once its statement has been
 * parsed, is executed, or has failed.  The application's name is masked where
 * it is kept, since each line of the log may begin with it, and the end of a
 * transaction, or of a savepoint, may restore it.  What looks like a token is
 * decided by token_redact(): texts are cut in the middle of a token, and tokens
 * are mistyped.
 *
 * The client's copy of a message that is also logged is masked too.  Text that
 * other code has copied before is not reached: pg_stat_statements keeps utility
 * statements as they came.  Imported tokens have no shape and cannot be seen.
 *
 * Memory: the fields of a message are overwritten in place, since a mask is
 * never longer.  The statement's text is still read by others, so it is
 * replaced by a copy from malloc(), which cannot raise; if there is no memory
 * for it, and for the server to write it out afterwards, the statement is
 * hidden.  The copy lives until the next one is made.
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/executor.h"
#include "parser/analyze.h"
#include "pgstat.h"
#include "tcop/tcopprot.h"
#include "tcop/utility.h"
#include "utils/backend_status.h"
#include "utils/guc.h"

#include "base/settings.h"
#include "compat.h"
#include "server/redact.h"
#include "token/token.h"

/*
 * Memory without which a statement is hidden, in lengths of it: the copy, and
 * what the server takes to write it.  That is a buffer for the plain log and
 * another for CSV or JSON, each up to four times as long: text is escaped, and
 * buffers grow by doubling.
 */
#define STATEMENT_ROOM 9

/* Masks in place, wipes the rest, and returns the new length. */
typedef size_t (*Redactor) (char *s, size_t len);

static emit_log_hook_type previous_emit_log_hook = NULL;
static post_parse_analyze_hook_type previous_post_parse_analyze_hook = NULL;
static ExecutorStart_hook_type previous_executor_start_hook = NULL;
static ExecutorRun_hook_type previous_executor_run_hook = NULL;
static ProcessUtility_hook_type previous_process_utility_hook = NULL;

/* The masked statement that debug_query_string points to. */
static char *masked_statement = NULL;

static void
redact_string(char *s, Redactor redact)
{
	if (s != NULL)
	{
		size_t		len = strlen(s);

		if (token_suspected(s, len))
			redact(s, len);
	}
}

static void
redact_text(char *s)
{
	redact_string(s, token_redact);
}

/* The same for a text that may show what stands around a place in another. */
static void
redact_excerpt(char *s)
{
	redact_text(s);
	if (s != NULL)
		token_redact_cut(s, strlen(s));
}

/*
 * The application's name, which stays as it is where it is no token: it is the
 * client's own, and SHOW tells it.
 */
static void
redact_application_name(void)
{
	redact_string(application_name, token_redact_kept);
}

/*
 * Mask the statement, which is about to be logged or given to parallel workers.
 * Returns false if there is no memory for it; one that was masked before is
 * copied again, since there must be memory to write it.
 */
static bool
redact_statement(void)
{
	size_t		len;
	char	   *copy;
	char	   *shrunk;

	if (debug_query_string == NULL)
		return true;
	len = strlen(debug_query_string);
	if (!token_suspected(debug_query_string, len))
		return true;
	copy = malloc((len + 1) * STATEMENT_ROOM);
	if (copy == NULL)
		return false;
	memcpy(copy, debug_query_string, len + 1);
	redact_text(copy);
	shrunk = realloc(copy, len + 1);
	if (shrunk != NULL)
		copy = shrunk;
	debug_query_string = copy;
	free(masked_statement);
	masked_statement = copy;
	return true;
}

/*
 * Mask this backend's own entry of pg_stat_activity, in place: nobody else
 * writes it, and nothing in between can raise.  The entry counts its changes,
 * so one that was looked at is not looked at again.
 */
static void
redact_activity(void)
{
	static int	changes_seen = -1;	/* odd, so never the count of a whole one */
	volatile PgBackendStatus *entry = MyBEEntry;

	if (!settings_redact_logs || entry == NULL)
		return;
	if (entry->st_changecount != changes_seen)
	{
		if (token_suspected(entry->st_activity_raw, strlen(entry->st_activity_raw)) ||
			token_suspected(entry->st_appname, strlen(entry->st_appname)))
		{
			PGSTAT_BEGIN_WRITE_ACTIVITY(entry);
			redact_text(entry->st_activity_raw);
			redact_string(entry->st_appname, token_redact_kept);
			PGSTAT_END_WRITE_ACTIVITY(entry);
		}
		redact_application_name();
		changes_seen = entry->st_changecount;
	}
}

/* emit_log_hook: called for what goes to the server log.  Never raises. */
static void
redact_log(ErrorData *edata)
{
	static bool busy = false;

	if (settings_redact_logs && !busy)
	{
		busy = true;
		redact_excerpt(edata->message);
		redact_excerpt(edata->detail);
		redact_text(edata->detail_log);
		redact_text(edata->hint);
		redact_excerpt(edata->context);
		redact_text(edata->internalquery);
		if (!edata->hide_stmt && !redact_statement())
			edata->hide_stmt = true;
		redact_application_name();
		/* A statement that failed before it was parsed. */
		redact_activity();
		busy = false;
	}
	if (previous_emit_log_hook)
		previous_emit_log_hook(edata);
}

static void
redact_parsed(ParseState *pstate, Query *query, JumbleState *jstate)
{
	if (previous_post_parse_analyze_hook)
		previous_post_parse_analyze_hook(pstate, query, jstate);
	redact_activity();
}

/*
 * A statement that was parsed earlier is reported anew when its parameters are
 * bound, which starts the executor, and again when it is executed.
 */
static void
redact_started(QueryDesc *query_desc, int eflags)
{
	redact_activity();
	if (previous_executor_start_hook)
		previous_executor_start_hook(query_desc, eflags);
	else
		standard_ExecutorStart(query_desc, eflags);
}

static void
redact_run(QueryDesc *query_desc, ScanDirection direction, COMPAT_RUN_PARAMS)
{
	redact_activity();
	if (previous_executor_run_hook)
		previous_executor_run_hook(query_desc, direction, COMPAT_RUN_ARGS);
	else
		standard_ExecutorRun(query_desc, direction, COMPAT_RUN_ARGS);
	/* The application's name that it has set. */
	redact_activity();
}

/*
 * The workers that build an index or vacuum show the statement, and run no
 * statement of their own; without memory for it they show it as it came.
 */
static void
redact_utility(PlannedStmt *statement, const char *query, bool read_only_tree,
			   ProcessUtilityContext context, ParamListInfo params,
			   QueryEnvironment *environment, DestReceiver *dest,
			   QueryCompletion *completion)
{
	redact_activity();
	if (settings_redact_logs && MyBEEntry != NULL &&
		debug_query_string != masked_statement &&
		token_suspected(MyBEEntry->st_activity_raw,
						strlen(MyBEEntry->st_activity_raw)))
		(void) redact_statement();
	if (previous_process_utility_hook)
		previous_process_utility_hook(statement, query, read_only_tree, context,
									  params, environment, dest, completion);
	else
		standard_ProcessUtility(statement, query, read_only_tree, context,
								params, environment, dest, completion);
	redact_activity();
}

/*
 * The application's name of a new connection, which is set in its first
 * transaction; a statement that has failed and is not logged.
 */
static void
redact_ended(XactEvent event, void *arg)
{
	redact_activity();
}

void
redact_init(void)
{
	previous_emit_log_hook = emit_log_hook;
	emit_log_hook = redact_log;
	previous_post_parse_analyze_hook = post_parse_analyze_hook;
	post_parse_analyze_hook = redact_parsed;
	previous_executor_start_hook = ExecutorStart_hook;
	ExecutorStart_hook = redact_started;
	previous_executor_run_hook = ExecutorRun_hook;
	ExecutorRun_hook = redact_run;
	previous_process_utility_hook = ProcessUtility_hook;
	ProcessUtility_hook = redact_utility;
	RegisterXactCallback(redact_ended, NULL);
}
