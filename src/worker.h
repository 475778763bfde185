/*
 * worker.h
 *		The processes that flush usage to the tables.
 */
#ifndef WORKER_H
#define WORKER_H

extern void worker_init(void);
extern bool worker_start_launcher(void);
extern PGDLLEXPORT void rk_apikeys_launcher_main(Datum arg);
extern PGDLLEXPORT void rk_apikeys_flush_main(Datum database);

#endif
